package site

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

// crowd is peers that are only in memory.
type crowd struct {
	*inventories
	table *peerTable
	n     int
}

func newCrowd(maxPeers int, maxBytes int64) *crowd {
	t := newPeerTable(nil)
	never := func(peer.ID) bool { return false }
	return &crowd{newInventories(maxPeers, maxBytes, never), t, 0}
}

// add returns a new peer on machine m.
func (c *crowd) add(m int) *Peer {
	c.n++
	id := peer.ID(fmt.Sprint("peer ", c.n))
	p, _ := c.table.add(id, func() *Peer {
		return newPeer(id, machine.Of(netip.AddrFrom4([4]byte{10, 0, 0, byte(m)})), func() {}, &c.table.pulse)
	})
	return p
}

// used returns what all inventories take.
func (c *crowd) used() (n int64) {
	for _, p := range c.table.all() {
		n += int64(p.told.inventory.Load().Bytes())
	}
	return n
}

// fat returns the largest filter of n slots: 2 bytes each.
func fat(segments int) []byte {
	const length = 1 << 16
	slots := (segments + 2) * length
	b := []byte{1}
	b = binary.BigEndian.AppendUint32(b, uint32(slots))
	b = binary.BigEndian.AppendUint64(b, 7)
	b = binary.BigEndian.AppendUint32(b, length)
	b = binary.BigEndian.AppendUint32(b, uint32(segments))
	return append(b, make([]byte, 2*slots)...)
}

// changes returns a list of n keys that came.
func changes(n int) []byte {
	b := []byte{1}
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = binary.BigEndian.AppendUint32(b, 0)
	for range n {
		b = binary.BigEndian.AppendUint64(b, rand.Uint64())
	}
	return b
}

// TestInventoryBytes: filters and changes together stay below the bound, and a machine that
// fills it makes room for others, also for ones of its own.
func TestInventoryBytes(t *testing.T) {
	const most = 16 << 20
	c := newCrowd(256, most)
	var flood []*Peer
	for range 20 {
		p := c.add(1)
		flood = append(flood, p)
		if err := c.full(p, fat(14)); err != nil {
			t.Fatal(err)
		}
	}
	honest := filter(t, 20000)
	newcomers := []*Peer{c.add(1), c.add(2)}
	for _, p := range newcomers {
		if err := c.full(p, honest); err != nil {
			t.Fatal(err)
		}
		c.use(p)
	}
	for range 8 {
		for _, p := range flood {
			if err := c.changes(p, changes(16<<10)); err != nil && !errors.Is(err, wire.ErrFrame) {
				t.Fatal(err)
			}
		}
		if n := c.used(); n > most {
			t.Fatalf("%d bytes, %d are allowed", n, most)
		}
	}
	for i, p := range newcomers {
		if p.Paths() != 20000 {
			t.Errorf("newcomer %d: %d paths", i, p.Paths())
		}
	}
	// What was dropped comes back with the next filter, and goes with its peer.
	if err := c.full(flood[0], honest); err != nil || flood[0].Paths() != 20000 {
		t.Errorf("%v, %d paths", err, flood[0].Paths())
	}
	for _, p := range c.table.all() {
		c.lost(p)
	}
	if c.bytes.Cost() != 0 || c.members.Len() != 0 {
		t.Error("what lost peers took is still counted")
	}
}

// TestManyInventories: 64 peers of 100,000 paths fit, on one machine or on many, and so do 256.
func TestManyInventories(t *testing.T) {
	body := filter(t, 100_000)
	for _, k := range []int{64, 256} {
		c := newCrowd(256, 0)
		for i := range k {
			p := c.add(1 + i%(4*k/64))
			if err := c.full(p, body); err != nil || p.Paths() != 100_000 {
				t.Fatalf("peer %d: %v, %d paths", i, err, p.Paths())
			}
		}
		for _, p := range c.table.all() {
			if p.Paths() != 100_000 {
				t.Fatal("an inventory had to give way")
			}
		}
	}
}

// TestMembers: who gives way gets no room again at once, and one session of a peer replaces
// the other.
func TestMembers(t *testing.T) {
	c := newCrowd(4, 0)
	aborted := map[peer.ID]int{}
	admit := func(p *Peer) bool { return c.admit(p, func() { aborted[p.ID]++ }) != nil }
	var flood []*Peer
	for range 20 {
		p := c.add(1)
		flood = append(flood, p)
		if !admit(p) {
			t.Fatal("a newcomer of the machine that has most is refused")
		}
	}
	if c.members.Len() != 4+spareMembers || len(aborted) != 20-4-spareMembers {
		t.Errorf("%d members, %d gave way", c.members.Len(), len(aborted))
	}
	if admit(flood[0]) {
		t.Error("a member that gave way is back at once")
	}
	for m := range 7 {
		if !admit(c.add(2 + m)) {
			t.Error("a newcomer of another machine is refused")
		}
	}
	if admit(c.add(20)) {
		t.Error("a newcomer is taken where each machine has one member")
	}
	last := flood[len(flood)-1]
	if !admit(last) || aborted[last.ID] != 1 {
		t.Errorf("a second session ended %d others", aborted[last.ID])
	}
}

// TestBounds: the bounds of members and of memory hold at every moment, whatever peers that
// come, tell, and go do at the same time.
func TestBounds(t *testing.T) {
	const most, maxPeers = 4 << 20, 8
	c := newCrowd(maxPeers, most)
	var all []*Peer
	for i := range 64 {
		all = append(all, c.add(1+i%5))
	}
	body, list := fat(1), changes(64)
	var flood sync.WaitGroup
	for i := range 8 {
		flood.Go(func() {
			for n := range 12 {
				p := all[(8*n+i)%len(all)]
				c.pushed.Remove(p.ID)
				leave := c.admit(p, func() {})
				_ = c.full(p, body)
				_ = c.changes(p, list)
				if leave != nil && n%3 == 0 {
					leave()
				}
				c.mu.Lock()
				members, used := c.table.members(), c.used()
				c.mu.Unlock()
				if members > maxPeers+spareMembers || used > most {
					t.Errorf("%d members, %d bytes", members, used)
				}
			}
		})
	}
	flood.Wait()
	for _, p := range all {
		c.lost(p)
		if c.admit(p, func() {}) != nil {
			t.Fatal("a peer that was lost is a member")
		}
		_ = c.full(p, body)
	}
	if c.bytes.Cost() != 0 || c.members.Len() != 0 || c.table.members() != 0 {
		t.Error("what lost peers took is still counted")
	}
}

// TestIncoming: filters on their way in take room as they come, not as they claim, and the
// slowest one of the machine that has most gives way.
func TestIncoming(t *testing.T) {
	c := newCrowd(256, 0)
	var aborted atomic.Int32
	for range 100 {
		p := c.add(1)
		in := &incoming{abort: func() { aborted.Add(1) }}
		gone, _ := c.incoming.Put(p.Machine, in, 1<<20, false)
		for _, o := range gone {
			o.abort()
		}
	}
	if n := c.incoming.Cost(); n > maxIncoming || aborted.Load() != 100-16 {
		t.Errorf("%d bytes, %d gave way", n, aborted.Load())
	}
	a, b := newPipe()
	defer a.Close()
	p := c.add(2)
	r := newSessionReader(p, b, c.inventories)
	r.received, r.named = func(int) {}, func([]string) {}
	done := make(chan error, 1)
	go func() { done <- r.run(context.Background()) }()
	if _, err := a.Write(wire.AppendFrame(nil, wire.Filter, filter(t, 100_000))); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(wire.AppendFrame(nil, wire.Ping, make([]byte, wire.PingSize))); err != nil {
		t.Fatal(err)
	}
	if k, _, err := wire.ReadFrame(a, 0); err != nil || k != wire.Pong || p.Paths() != 100_000 {
		t.Errorf("%v, %v, %d paths", k, err, p.Paths())
	}
	_ = a.Close()
	if err := <-done; err == nil {
		t.Error("no error at the end")
	}
}
