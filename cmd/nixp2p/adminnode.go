package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/history"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixconf"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/upstream"
	"github.com/nixp2p/nixp2p/localstore"
)

// adminNode shows the node to the admin listener: there may be none yet, or none at all because
// its start failed.
type adminNode struct {
	conditions *source.Conditions
	node       atomic.Pointer[node]
	broken     atomic.Pointer[error]
}

var errStarting = errors.New("starting")

// Ready is part of admin.Node.
func (a *adminNode) Ready() error {
	if err := a.broken.Load(); err != nil {
		return *err
	}
	if a.node.Load() == nil {
		return errStarting
	}
	return nil
}

// State is part of admin.Node.
func (a *adminNode) State() admin.State {
	n := a.node.Load()
	if n == nil {
		return admin.State{Machine: machineName(), Conditions: shown(a.conditions)}
	}
	s := admin.State{
		Machine: machineName(), Nix: n.nixUse(),
		Conditions: n.current(), Store: storeState(n.store), StateDir: n.cfg.StateDir,
		Transfers: n.transfers(), Failures: n.failures(),
	}
	saved, estimated := n.past.history.Saved()
	s.Saved = admin.Saved{Spans: admin.Spans(saved), Estimated: admin.Spans(estimated)}
	for _, h := range n.upstream.Health() {
		s.Upstreams = append(s.Upstreams, admin.Upstream{
			URL: h.URL, Up: h.Up, Why: h.Why, Since: h.Since, LastError: h.LastError,
			LatencyMS: milliseconds(h.Latency), Priority: h.Priority, Requests: h.Requests,
		})
	}
	n.addMirror(&s)
	n.addReplication(&s)
	if n.cache != nil {
		s.Cache = admin.Cache{Dir: n.cfg.CacheDir, Bytes: n.cache.Usage(), Limit: n.cfg.CacheSize, Entries: narcache.Files(n.cache)}
	}
	return s
}

// machineName is how people know this machine, "" if it has no name.
func machineName() string {
	name, _ := os.Hostname()
	return name
}

// nixUse says whether this machine's Nix uses the node.
func (n *node) nixUse() admin.NixUse {
	places := nixconf.Look(os.Getenv)
	settings, _ := places.ReadSystem() // what cannot be read does not list us
	use := admin.NixUse{Conf: places.System}
	use.URL, _ = substituterURL(n.cfg.Listen)
	use.Listed = use.URL != "" && settings.Uses(use.URL)
	if at := n.asked.Load(); at != 0 {
		use.Asked = time.Unix(at, 0)
	}
	return use
}

// noteNix notes when a Nix asks.
func (n *node) noteNix(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.UserAgent(), "Nix/") {
			n.asked.Store(time.Now().Unix())
		}
		h.ServeHTTP(w, r)
	})
}

// shown returns what is noted, for people and programs.
func shown(conditions *source.Conditions) (list []admin.Condition) {
	for _, c := range conditions.List() {
		list = append(list, admin.Condition{Part: string(c.Part), Text: c.Text, Hint: c.Hint, Note: c.Note})
	}
	return list
}

// current returns how the parts work now, where there is something to say.
func (n *node) current() []admin.Condition {
	list := shown(n.conditions)
	if err := n.state.Err(); err != nil {
		list = append(list, admin.Condition{Part: string(source.PartState), Text: "nothing is remembered over a restart: " + err.Error()})
	}
	return list
}

// storeState says what the store is worth.
func storeState(store *localstore.Store) admin.Store {
	c := store.Census()
	s := admin.Store{
		Database: c.Mode, Complete: c.Complete, Paths: c.Rows, Shared: c.Shared, Trusted: c.Trusted, Unsigned: c.Unsigned,
		Untrusted: c.Untrusted, Addressed: c.Addressed, Unreadable: c.NoSize + c.Invalid, Quarantined: c.Quarantined,
	}
	for share := range store.Shares() {
		s.Sample = share.Store.String()
		break
	}
	return s
}

// Why is part of admin.Node.
func (a *adminNode) Why(ctx context.Context, h nix.StoreHash) []admin.Answer {
	n := a.node.Load()
	if n == nil {
		return nil
	}
	var answers []admin.Answer
	for _, f := range n.resolver.Why(ctx, h) {
		ans := answerOf(f)
		if f.Err == nil {
			if ans.DeltaBases = n.deltaBases(ctx, f); len(ans.DeltaBases) > 0 {
				ans.DeltaBytes = n.bases.Expect(f.Info.NarSize())
			}
		}
		answers = append(answers, ans)
	}
	return answers
}

// deltaBases names the paths of this machine's store that are proposed to a peer or a mirror for a NAR.
func (n *node) deltaBases(ctx context.Context, f resolve.Finding) (paths []string) {
	var bases []source.Base
	switch {
	case f.Source == source.Peer && n.peers != nil:
		bases = n.peers.DeltaBases(f.Info)
	case f.Source == source.Upstream:
		_, bases = upstream.DeltaBases(n.upstream, f.Info)
	}
	for _, b := range bases {
		if base, err := n.store.Public(ctx, b.Store); err == nil {
			paths = append(paths, base.StorePath().String())
		}
	}
	return paths
}

// answerOf says for people and programs what a source answered.
func answerOf(f resolve.Finding) admin.Answer {
	ans := admin.Answer{Source: f.Source.String(), Result: admin.Has, TookMS: milliseconds(f.Took)}
	switch {
	case f.Err == nil:
		ans.StorePath, ans.NarHash, ans.NarSize = f.Info.StorePath().String(), f.Info.NarHash().String(), f.Info.NarSize()
		ans.Signers = f.Info.Signers()
	case source.Absent(f.Err):
		ans.Result = admin.Absent
		if refused := source.Refused(f.Err); refused != nil {
			ans.Err = refused.Why
		}
	case source.Invalid(f.Err) != nil:
		ans.Result, ans.Err = admin.Invalid, f.Err.Error()
	default:
		ans.Result, ans.Err = admin.Unavailable, f.Err.Error()
	}
	for _, form := range f.Forms {
		ans.Forms = append(ans.Forms, form.String())
	}
	return ans
}

// Peers is part of admin.Node.
func (a *adminNode) Peers() []admin.Peer {
	n := a.node.Load()
	if n == nil || n.peers == nil {
		return nil
	}
	var peers []admin.Peer
	for _, p := range n.peers.Peers() {
		peers = append(peers, admin.Peer{
			ID: p.ID, Name: p.Name, Addresses: p.Addresses, FoundBy: p.FoundBy, Zone: p.Zone, RTTMS: p.RTT, Paths: int64(p.Paths),
			SentBytes: p.SentBytes, ReceivedBytes: p.ReceivedBytes, Standing: p.Standing,
			SendingBytesPerSecond: p.Sending, ReceivingBytesPerSecond: p.Receiving,
		})
	}
	return peers
}

// Prefetch is part of admin.Node.
func (a *adminNode) Prefetch(ctx context.Context, h nix.StoreHash, dry bool) (admin.Prefetched, error) {
	n := a.node.Load()
	if n == nil {
		return admin.Prefetched{}, a.Ready()
	}
	p, err := n.transfer.Prefetch(ctx, h, dry)
	if err != nil {
		return admin.Prefetched{}, err
	}
	out := admin.Prefetched{
		StorePath: p.Info.StorePath().String(), NarSize: p.Info.NarSize(), Size: p.Size, References: []string{},
	}
	if p.Local != source.None {
		out.AtHand = p.Local.String()
	}
	for _, ref := range p.Info.References() {
		if ref != p.Info.StorePath() {
			out.References = append(out.References, ref.Hash().String())
		}
	}
	return out, nil
}

var errNoCache = errors.New("there is no NAR cache: `nixp2p status` says why")

// Trim is part of admin.Node.
func (a *adminNode) Trim(limit int64) (any, error) {
	n := a.node.Load()
	if n == nil || n.cache == nil {
		return nil, errNoCache
	}
	report := n.cache.GC(limit)
	n.nameFiles(report.Removed, report.Kept)
	return report, nil
}

// nameFiles gives files of the cache the names of their packages, as far as narinfos say them.
func (n *node) nameFiles(lists ...[]narcache.Item) {
	names := map[string]string{} // by NAR hash
	for _, i := range slices.Concat(lists...) {
		names[i.NarHash] = ""
	}
	for info := range n.infos.Each(context.Background(), func(_ nix.StoreHash, h nix.NarHash) bool { _, is := names[h.String()]; return is }) {
		names[info.NarHash().String()] = info.StorePath().Name()
	}
	for _, list := range lists {
		for k := range list {
			list[k].Name = names[list[k].NarHash]
		}
	}
}

// TrimPlan is part of admin.Node.
func (a *adminNode) TrimPlan(limit int64) (any, error) {
	n := a.node.Load()
	if n == nil || n.cache == nil {
		return nil, errNoCache
	}
	report := n.cache.Plan(limit)
	n.nameFiles(report.Removed, report.Kept)
	return report, nil
}

// History is part of admin.Node.
func (a *adminNode) History() admin.History {
	n := a.node.Load()
	if n == nil {
		return admin.History{Hours: []admin.Bucket{}, Days: []admin.Bucket{}}
	}
	hours, days := n.past.history.Buckets()
	return admin.History{Hours: buckets(hours), Days: buckets(days)}
}

func buckets(list []history.Bucket) []admin.Bucket {
	out := make([]admin.Bucket, 0, len(list))
	for _, b := range list {
		out = append(out, admin.Bucket{
			Start: b.Start, Bytes: admin.Bytes{Store: b.Store, Cache: b.Cache, Peer: b.Peer, Upstream: b.Upstream},
			Saved: b.Saved, Estimated: b.Estimated,
		})
	}
	return out
}

// counts reads the metrics: the history has no numbers of its own.
func (n *node) counts() history.Counts {
	sent := func(r source.Role) int64 { return metrics.Value(n.metrics.NarUnpacked.WithLabelValues(r.String())) }
	return history.Counts{
		Store: sent(source.Store), Cache: sent(source.Cache), Peer: sent(source.Peer), Upstream: sent(source.Upstream),
		Saved: metrics.Value(n.metrics.SavedBytes), Estimated: metrics.Value(n.metrics.SavedEstimated),
	}
}

// transfers lists what is on its way now.
func (n *node) transfers() (list []admin.Transfer) {
	for _, t := range n.transfer.Transfers() {
		x := admin.Transfer{
			Direction: admin.Nix, StorePath: t.Info.StorePath().String(), NarHash: t.Info.NarHash().String(), Form: formName(t.Form),
			Peer: t.Peer, Bytes: t.Bytes, Size: t.Size, BytesPerSecond: t.Rate, Started: t.Started, Readers: t.Readers,
		}
		if t.Source != source.None {
			x.Source = t.Source.String()
		}
		if t.Inbound {
			x.Direction = admin.In
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
	for _, f := range n.past.failures.Last() {
		list = append(list, admin.Failure{
			At: f.At, Times: f.Times, What: f.What(), Source: f.Source.String(), StorePath: f.StorePath, Error: f.Err,
		})
	}
	return list
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
