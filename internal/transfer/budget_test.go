package transfer_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/verify"
)

// site is what hostile and slow peers are made for.
type site struct {
	peers []*sourcetest.Peer
	p     nixtest.Path
	has   func(*sourcetest.Peer)
	rate  int64
}

// kindNames are the names of allKinds.
var kindNames = []string{
	"nobody there",
	"silent",
	"silent when opened",
	"many silent",
	"trickle",
	"trickle after a beginning",
	"half as fast",
	"as fast",
	"trusted, half as fast",
	"trusted, slower and slower",
	"wrong at the end",
	"many wrong",
	"wrong and dying",
	"never ending",
	"FOLLOW forever",
	"FOLLOW somebody silent",
	"no answer of the coordinator",
	"FETCH, late",
	"FETCH, then leave it to somebody silent",
	"honest and fast",
}

// allKinds are peers and coordinators of all kinds. They are made in a bubble.
func allKinds() map[string]func(s *site, sp *sourcetest.Peers) {
	peer := func(s *site, speed int64, trusted bool, faults ...sourcetest.Fault) *sourcetest.Peer {
		n := sourcetest.NewPeer(fmt.Sprint("peer", len(s.peers)))
		s.has(n)
		n.SetSpeed(0, speed)
		n.Trusted = trusted
		n.SetFaults(faults...)
		return n
	}
	follow := func(n *sourcetest.Peer) func(context.Context, int, int64) sourcetest.Decision {
		return func(context.Context, int, int64) sourcetest.Decision { return sourcetest.Decision{Follow: n} }
	}
	return map[string]func(s *site, sp *sourcetest.Peers){
		"nobody there": func(*site, *sourcetest.Peers) {},
		"silent": func(s *site, sp *sourcetest.Peers) {
			sp.List = append(sp.List, peer(s, 0, false, sourcetest.Fault{Do: sourcetest.Hang}))
		},
		"silent when opened": func(s *site, sp *sourcetest.Peers) {
			n := peer(s, 0, false)
			n.OnNAR(func(ctx context.Context, _ *verify.Info, _ nix.Form) error {
				<-ctx.Done()
				return ctx.Err()
			})
			sp.List = append(sp.List, n)
		},
		"many silent": func(s *site, sp *sourcetest.Peers) {
			for range 12 {
				sp.List = append(sp.List, peer(s, 0, true, sourcetest.Fault{Do: sourcetest.Hang}))
			}
		},
		"trickle": func(s *site, sp *sourcetest.Peers) {
			n := peer(s, 1, false)
			n.SetSpeed(6*time.Second, 1)
			sp.List = append(sp.List, n)
		},
		"trickle after a beginning": func(s *site, sp *sourcetest.Peers) {
			n := peer(s, 0, true, sourcetest.Fault{Do: sourcetest.Hang, At: 1000})
			sp.List = append(sp.List, n)
		},
		"half as fast": func(s *site, sp *sourcetest.Peers) { sp.List = append(sp.List, peer(s, s.rate/2, false)) },
		"as fast":      func(s *site, sp *sourcetest.Peers) { sp.List = append(sp.List, peer(s, s.rate, false)) },
		"trusted, half as fast": func(s *site, sp *sourcetest.Peers) {
			sp.List = append(sp.List, peer(s, s.rate/2, true))
		},
		"trusted, slower and slower": func(s *site, sp *sourcetest.Peers) {
			for i := range 5 {
				sp.List = append(sp.List, peer(s, s.rate/int64(1+i), true, sourcetest.Fault{Do: sourcetest.Die, At: int64(i+1) * 50_000}))
			}
		},
		"wrong at the end": func(s *site, sp *sourcetest.Peers) {
			sp.List = append(sp.List, peer(s, s.rate*3, false, sourcetest.Fault{Do: sourcetest.Flip, At: 10}))
		},
		"many wrong": func(s *site, sp *sourcetest.Peers) {
			for range 8 {
				sp.List = append(sp.List, peer(s, s.rate*3, false, sourcetest.Fault{Do: sourcetest.Flip, At: 10}))
			}
		},
		"wrong and dying": func(s *site, sp *sourcetest.Peers) {
			for range 8 {
				sp.List = append(sp.List, peer(s, s.rate*2, false, sourcetest.Fault{Do: sourcetest.Flip, At: 10}, sourcetest.Fault{Do: sourcetest.Die, At: 60_000}))
			}
		},
		"never ending": func(s *site, sp *sourcetest.Peers) {
			sp.List = append(sp.List, peer(s, s.rate*3, false, sourcetest.Fault{Do: sourcetest.Overflow}))
		},
		"FOLLOW forever": func(s *site, sp *sourcetest.Peers) {
			sp.Coordinator = func(ctx context.Context, call int, _ int64) sourcetest.Decision {
				n := peer(s, 1, false)
				n.SetSpeed(6*time.Second, 1)
				return sourcetest.Decision{Follow: n}
			}
		},
		"FOLLOW somebody silent": func(s *site, sp *sourcetest.Peers) {
			sp.Coordinator = follow(peer(s, 0, true, sourcetest.Fault{Do: sourcetest.Hang}))
		},
		"no answer of the coordinator": func(_ *site, sp *sourcetest.Peers) {
			sp.Coordinator = func(ctx context.Context, _ int, _ int64) sourcetest.Decision {
				<-ctx.Done()
				return sourcetest.Decision{Err: ctx.Err()}
			}
		},
		"FETCH, late": func(_ *site, sp *sourcetest.Peers) {
			sp.Coordinator = func(ctx context.Context, _ int, _ int64) sourcetest.Decision {
				select {
				case <-time.After(time.Minute):
				case <-ctx.Done():
				}
				return sourcetest.Decision{Err: ctx.Err()}
			}
		},
		"FETCH, then leave it to somebody silent": func(s *site, sp *sourcetest.Peers) {
			n := peer(s, 0, true, sourcetest.Fault{Do: sourcetest.Hang})
			sp.Coordinator = func(_ context.Context, call int, _ int64) sourcetest.Decision {
				if call%2 == 1 {
					return sourcetest.Decision{Follow: n}
				}
				over := make(chan struct{})
				time.AfterFunc(200*time.Millisecond, func() { close(over) })
				return sourcetest.Decision{Over: over}
			}
		},
		"honest and fast": func(s *site, sp *sourcetest.Peers) { sp.List = append(sp.List, peer(s, s.rate*10, true)) },
	}
}

// TestBudget: whatever peers and coordinators do, a NAR that upstream delivers in T arrives
// within T + 3 s + T/2, whole and right.
func TestBudget(t *testing.T) {
	const latency = 50 * time.Millisecond
	for _, name := range kindNames {
		for _, c := range []struct {
			size int
			rate int64 // of upstream
		}{{50_000, 100_000}, {400_000, 20_000}, {1_300_000, 250_000}} {
			for _, form := range []nix.Compression{nix.None, nix.XZ} {
				for _, spool := range []bool{true, false} {
					t.Run(fmt.Sprint(name, c, form, spool), func(t *testing.T) {
						if form == nix.XZ && (c.size > mib || !spool) || testing.Short() && (c.size > mib || form == nix.XZ && c.rate != 100_000 || !spool && c.rate != 100_000) {
							t.Skip("one of many")
						}
						synctest.Test(t, func(t *testing.T) {
							s := &site{p: nixtest.NewPath(fmt.Sprint("p", c.size), c.size), rate: c.rate}
							w := newWorld(t, withPeers, func(w *world) {
								if !spool {
									noCache(w)
								}
							})
							url, want := nix.Raw, s.p.NAR
							w.up.Add(t, key, s.p)
							if form == nix.XZ {
								info, file := w.up.AddFile(t, key, s.p, nix.XZ, nil)
								url, want = formOf(t, info), file.Bytes
							}
							s.has = func(n *sourcetest.Peer) {
								n.AddBytes(s.p.NarHash(), url, want)
								n.AddInfo(s.p.Info(t, key))
							}
							w.up.SetSpeed(latency, c.rate)
							w.up.SetPace(source.Pace{Latency: latency, Rate: float64(c.rate)})
							w.peers.List = nil
							w.peers.Coordinator = func(context.Context, int, int64) sourcetest.Decision { return sourcetest.Decision{} }
							all := allKinds()
							if len(all) != len(kindNames) {
								t.Fatal("kindNames is out of date")
							}
							all[name](s, w.peers)
							whole := latency + time.Duration(len(want))*time.Second/time.Duration(c.rate)
							start := time.Now()
							got, err := w.whole(t.Context(), nameOf(s.p, url), transfer.Query{})
							took := time.Since(start)
							if err == nil && !url.IsRaw() && !bytes.Equal(got, want) {
								got, want = decode(t, nix.XZ, got), s.p.NAR
							}
							if err != nil || !bytes.Equal(got, want) {
								t.Errorf("%d of %d bytes, error %v", len(got), len(want), err)
							}
							if limit := whole + 3*time.Second + whole/2; took > limit {
								t.Errorf("after %v, limit %v: upstream takes %v", took, limit, whole)
							}
						})
					})
				}
			}
		}
	}
}
