package main

import (
	"log/slog"
	"path/filepath"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/ledger"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// openLedger opens the memory of what was moved and saved. It counts also when the directory
// cannot be used; then only until the end of the process.
func (n *node) openLedger(log *slog.Logger) (err error) {
	cfg := ledger.Config{Dir: filepath.Join(n.cfg.StateDir, "history"), Read: n.counts, Log: log}
	if n.ledger, err = ledger.Open(cfg); err != nil {
		cfg.Dir = ""
		n.ledger, _ = ledger.Open(cfg) // in memory it cannot fail
	}
	return err
}

// counts reads the metrics: the ledger has no numbers of its own.
func (n *node) counts() ledger.Counts {
	sent := func(source string) int64 { return metrics.Value(n.metrics.NarBytes.WithLabelValues(source)) }
	return ledger.Counts{
		Store: sent("store"), Cache: sent("cache"), Peer: sent("peer"), Upstream: sent("upstream"),
		Saved: metrics.Value(n.metrics.SavedBytes),
	}
}

// transfers lists what is on its way now.
func (n *node) transfers() (list []admin.Transfer) {
	for _, t := range n.resolver.Transfers() {
		x := admin.Transfer{
			Direction: admin.Nix, StorePath: t.Info.StorePath().String(), NarHash: t.Info.NarHash().String(), Form: formName(t.Form),
			Source: t.Source, Bytes: t.Bytes, Size: t.Size, BytesPerSecond: t.Rate, Started: t.Started, Readers: t.Readers,
		}
		if t.Inbound {
			x.Direction = admin.In
			if n.peers != nil && t.Source == n.peers.Name() {
				x.Peer = n.peers.Giver(t.Info.NarHash(), t.Form)
			}
		}
		list = append(list, x)
	}
	if n.peers == nil {
		return list
	}
	for _, u := range n.peers.Uploads() {
		list = append(list, admin.Transfer{
			Direction: admin.Out, StorePath: u.StorePath, NarHash: u.Nar.String(), Form: formName(u.Form), Source: u.Source, Peer: u.Peer,
			Bytes: u.Bytes, Size: u.Size, BytesPerSecond: u.Rate, Started: u.Started, Readers: 1,
		})
	}
	return list
}

// formName is the form of a NAR without the hash of its file.
func formName(f nix.Form) string {
	if f.IsRaw() {
		return "raw"
	}
	return string(f.Compression)
}

func (n *node) failures() (list []admin.Failure) {
	for _, f := range n.trouble.Last() {
		list = append(list, admin.Failure{
			At: f.At, Times: f.Times, What: f.What, Source: f.Source, StorePath: f.StorePath, Error: f.Err,
		})
	}
	return list
}

// History says what was sent to Nix.
func (a *adminNode) History() admin.History {
	n := a.node.Load()
	if n == nil {
		return admin.History{Hours: []admin.Bucket{}, Days: []admin.Bucket{}}
	}
	hours, days := n.ledger.History()
	return admin.History{Hours: buckets(hours), Days: buckets(days)}
}

func buckets(list []ledger.Bucket) []admin.Bucket {
	out := make([]admin.Bucket, 0, len(list))
	for _, b := range list {
		out = append(out, admin.Bucket{
			Start: b.Start, Bytes: admin.Bytes{Store: b.Store, Cache: b.Cache, Peer: b.Peer, Upstream: b.Upstream}, Saved: b.Saved,
		})
	}
	return out
}
