package narcache

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/verify"
)

// How verify.Tail lets a reader see more.
const (
	shrunkTail = 64 << 10
	patience   = 20 * time.Second
)

// TestFollow checks at each step how much a follower may see.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Dir: t.TempDir()})
		n := rawNAR(t, "a", 3*mib)
		d := create(t, c, n)
		r := d.ClientReader(0)
		late := d.ClientReader(2*mib + 5)
		defer late.Close()
		var mu sync.Mutex
		var seen bytes.Buffer
		done := make(chan error)
		go func() {
			b := make([]byte, 10_000)
			for {
				n, err := r.Read(b)
				mu.Lock()
				seen.Write(b[:n])
				mu.Unlock()
				if err != nil {
					done <- err
					return
				}
			}
		}()
		expect := func(want int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if seen.Len() != want {
				t.Fatalf("sees %d bytes, want %d", seen.Len(), want)
			}
		}
		write := func(to int) {
			t.Helper()
			if _, err := d.Write(n.data[d.written:to]); err != nil {
				t.Fatal(err)
			}
		}
		expect(0)
		write(mib)
		expect(0)
		write(mib + 1)
		expect(1)
		write(2 * mib)
		expect(2*mib - verify.TailSize)
		time.Sleep(patience - time.Second)
		expect(2*mib - verify.TailSize)
		time.Sleep(2 * time.Second)
		expect(2*mib - shrunkTail)
		write(len(n.data))
		expect(len(n.data) - shrunkTail)
		if whole, err := io.ReadAll(d.ReadBack()); err != nil || !bytes.Equal(whole, n.data) {
			t.Fatalf("the writer sees %d bytes, %v", len(whole), err)
		}
		if err := d.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		expect(len(n.data))
		if !bytes.Equal(seen.Bytes(), n.data) {
			t.Error("sees other bytes")
		}
		_ = r.Close()
		if b, err := io.ReadAll(late); err != nil || !bytes.Equal(b, n.data[2*mib+5:]) {
			t.Errorf("from the middle: %d bytes, %v", len(b), err)
		}
	})
}

// TestHideFromPeers: what is hidden is kept from other machines and from clients.
func TestHideFromPeers(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	n := rawNAR(t, "a", 5*mib)
	d := create(t, c, n)
	client, there := d.ClientReader(0), d.PeerReader(0)
	defer client.Close()
	defer there.Close()
	expect := func(wantClient, wantThere int64) {
		t.Helper()
		if client.have() != wantClient || there.have() != wantThere || d.Readable() != wantThere {
			t.Errorf("%d bytes for clients, %d there (%d); want %d, %d", client.have(), there.have(), d.Readable(), wantClient, wantThere)
		}
	}
	write := func(to int) {
		t.Helper()
		if _, err := d.Write(n.data[d.written:to]); err != nil {
			t.Fatal(err)
		}
	}
	write(2 * mib)
	expect(mib, 2*mib-peerTail)
	d.HideFromPeers(true)
	write(3 * mib)
	d.HideFromPeers(true)
	write(4 * mib)
	expect(2*mib, 2*mib)
	got := make([]byte, 3*mib)
	if k, err := io.ReadFull(there, got[:2*mib]); err != nil {
		t.Fatal(k, err)
	}
	more := make(chan error)
	go func() {
		_, err := io.ReadFull(there, got[2*mib:])
		more <- err
	}()
	d.HideFromPeers(false)
	if err := <-more; err != nil || !bytes.Equal(got, n.data[:3*mib]) {
		t.Errorf("afterwards: %v", err)
	}
	expect(3*mib, 4*mib-peerTail)
	d.HideFromPeers(true)
	write(len(n.data))
	expect(4*mib, 4*mib)
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	size := int64(len(n.data))
	expect(size, size)
}

func TestFollowersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Dir: t.TempDir()})
		n := rawNAR(t, "a", 3*mib)
		d := create(t, c, n)
		got := make(chan error)
		var readers []*Reader
		for range 5 {
			r := d.ClientReader(0)
			readers = append(readers, r)
			go func() {
				_, err := io.ReadAll(r)
				got <- err
			}()
		}
		_, _ = d.Write(n.data[:2*mib])
		synctest.Wait()
		for _, r := range readers {
			_ = r.Close()
			_ = r.Close()
			if err := <-got; !errors.Is(err, fs.ErrClosed) {
				t.Errorf("closed while it waited: %v", err)
			}
		}
		if _, err := readers[0].Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
		_, _ = d.Write(n.data[2*mib:])
		if err := d.Commit(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(get(t, c, n, n.form, 0), n.data) {
			t.Error("the download did not go on without them")
		}
	})
}

func TestAbort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Dir: t.TempDir()})
		n := rawNAR(t, "a", 3*mib)
		d := create(t, c, n)
		r := d.ClientReader(0)
		defer r.Close()
		_, _ = d.Write(n.data[:2*mib])
		if _, err := io.ReadFull(r, make([]byte, mib)); err != nil {
			t.Fatal(err)
		}
		got := make(chan error)
		go func() {
			_, err := r.Read(make([]byte, 1))
			got <- err
		}()
		synctest.Wait()
		why := errors.New("why")
		d.Abort(why)
		d.Abort(errors.New("later"))
		if err := <-got; !errors.Is(err, why) {
			t.Errorf("waiting: %v", err)
		}
		if _, err := d.ClientReader(0).Read(make([]byte, 1)); !errors.Is(err, why) {
			t.Errorf("coming later: %v", err)
		}
		if _, err := d.Write([]byte("x")); !errors.Is(err, why) {
			t.Errorf("writing: %v", err)
		}
		if c.Usage() != 0 || du(t, c.cfg.Dir) > dirBytes {
			t.Errorf("uses %d, on disk %d, with a reader still open", c.Usage(), du(t, c.cfg.Dir))
		}
		put(t, c, n)
	})
}

// TestReaderOutlivesEntry evicts and convicts under a reader.
func TestReaderOutlivesEntry(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir(), Size: 4*mib + dirBytes})
	n := rawNAR(t, "a", 3*mib-1000)
	d := create(t, c, n)
	_, _ = d.Write(n.data)
	follower := d.ClientReader(0)
	_ = d.Commit()
	persistAll(c)
	other := rawNAR(t, "b", 2*mib)
	if _, err := c.Create(other.info, other.form, int64(len(other.data))); !errors.Is(err, ErrDoesNotFit) {
		t.Fatalf("evicted what is followed: %v", err)
	}
	claim, err := c.NAR(t.Context(), n.info, n.form, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Invalid(n.info, n.form, nil)
	if has(c, n) || c.Usage() == 0 {
		t.Errorf("has %v, uses %d while its bytes are on disk", has(c, n), c.Usage())
	}
	for _, r := range []io.ReadCloser{follower, claim.Body} {
		if c.Usage() == 0 {
			t.Error("does not count what is still open")
		}
		if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, n.data) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		_ = r.Close()
	}
	if c.Usage() != 0 {
		t.Errorf("uses %d", c.Usage())
	}
	put(t, c, other)
}

// TestSecondDownload: while a download is hidden a second one of the same form may run; the first
// that is committed is kept.
func TestSecondDownload(t *testing.T) {
	for _, hiddenWins := range []bool{false, true} {
		c := open(t, Config{Dir: t.TempDir()})
		n := rawNAR(t, "a", 3*mib)
		hidden := create(t, c, n)
		hidden.HideFromPeers(true)
		second := create(t, c, n)
		if _, err := c.Create(n.info, n.form, int64(len(n.data))); !errors.Is(err, errExists) {
			t.Errorf("a third: %v", err)
		}
		if got := c.Downloads(n.info.NarHash()); len(got) != 2 || got[0] != second {
			t.Error("the hidden one is shown first")
		}
		winner, loser := second, hidden
		if hiddenWins {
			winner, loser = hidden, second
		}
		follower := loser.ClientReader(0)
		for _, d := range []*Download{winner, loser} {
			if _, err := d.Write(n.data); err != nil {
				t.Fatal(err)
			}
			if err := d.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		persistAll(c)
		if b, err := io.ReadAll(follower); err != nil || !bytes.Equal(b, n.data) {
			t.Errorf("who follows the loser: %d bytes, %v", len(b), err)
		}
		_ = follower.Close()
		if !bytes.Equal(get(t, c, n, n.form, 0), n.data) || c.Usage() != cost(int64(len(n.data))) || len(c.Downloads(n.info.NarHash())) != 0 {
			t.Errorf("uses %d", c.Usage())
		}
		if len(c.state.removing) != 0 {
			t.Error("something is still being removed")
		}
	}
}
