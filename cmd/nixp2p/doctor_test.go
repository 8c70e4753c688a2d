package main

import (
	"encoding/json"
	"fmt"
	"html"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/doctor"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// patient is a machine that is well: a node with a store and an upstream, and a Nix that is set
// to use it. Each test row makes it ill in one way.
type patient struct {
	t      *testing.T
	nix    *realnix.Nix
	corpus *realnix.Corpus
	node   *process
	client *realnix.Client

	url    string   // of the node
	admin  string   // of its admin listener
	other  string   // URL of a second substituter
	conf   []string // lines of nix.conf
	args   []string // of the doctor, beside the node's
	env    []string
	prefix []string // put before the command
}

// cacheServer says what a cache says of itself.
func cacheServer(t *testing.T, priority int, date time.Time) string {
	return newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if !date.IsZero() {
			w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
		}
		if r.URL.Path != "/nix-cache-info" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: %d\n", priority)
	})
}

// newPatient starts a node with the flags that come last, and sets Nix to use it.
func newPatient(t *testing.T, flags ...string) *patient {
	c := realnix.FindCorpus(t, realnix.Params{})
	p := &patient{nix: realnix.Find(t), corpus: c, other: cacheServer(t, 40, time.Time{})}
	p.node = startDaemon(t, append(corpusArgs(c, p.other, c.StoreRoot), flags...)...)
	p.url, p.admin, p.args = p.node.url, p.node.admin, p.node.args
	p.counted()
	return p.admit(t)
}

// admit returns the same machine with a Nix of its own.
func (p *patient) admit(t *testing.T) *patient {
	q := *p
	q.t, q.client = t, p.nix.TempClient(t, p.corpus.PublicKey)
	q.conf = []string{
		"substituters = " + p.url + " " + p.other, "trusted-public-keys = " + p.corpus.PublicKey,
		"connect-timeout = 5", "experimental-features = nix-command",
	}
	return &q
}

// restart starts the node anew with the flags, which are the doctor's, too.
func (p *patient) restart(flags ...string) {
	p.t.Helper()
	p.node.restart(flags...)
	p.args = flags
	p.counted()
}

// counted waits until the node has looked at its store.
func (p *patient) counted() {
	for range 2000 {
		if _, status := p.node.get(p.node.admin + "/api/v1/status"); !strings.Contains(status, `"complete": false`) || strings.Contains(status, `"database": "none"`) {
			return
		}
	}
	p.node.t.Fatal("the node does not come to an end with its store")
}

// flag replaces the value of a flag of the doctor, which is one argument behind its name.
func (p *patient) flag(name, value string) {
	p.args = slices.Clone(p.args)
	if i := slices.Index(p.args, name); i >= 0 {
		p.args[i+1] = value
		return
	}
	p.args = append(p.args, name, value)
}

// set replaces the line of nix.conf that begins so.
func (p *patient) set(name, value string) {
	p.conf = slices.DeleteFunc(p.conf, func(l string) bool { return strings.HasPrefix(l, name+" ") })
	if value != "" {
		p.conf = append(p.conf, name+" = "+value)
	}
}

// visit has the doctor look, and returns its report.
func (p *patient) visit() (doctor.Report, int) {
	p.t.Helper()
	dir := p.client.Dir
	conf := filepath.Join(dir, "conf/nix.conf")
	if err := os.WriteFile(conf, []byte(strings.Join(p.conf, "\n")+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	env := append([]string{
		"NIX_CONF_DIR=" + dir + "/conf", "XDG_CONFIG_HOME=" + dir + "/none", "XDG_CONFIG_DIRS=" + dir + "/none",
		"XDG_CACHE_HOME=" + dir + "/cache", "HOME=" + dir + "/home", "NIX_CONFIG=", "NIX_REMOTE=",
	}, p.env...)
	args := append([]string{
		"doctor", "--json", "--config", os.DevNull, "--listen", orAny(p.url), "--admin-listen", orAny(p.admin),
		"--state-dir", p.node.dir + "/state", "--cache-dir", p.node.dir + "/cache", "--cache-size", "1MiB",
	}, p.args...)
	for again := 0; ; again++ {
		out, errs, code := commandIn(p.t, env, p.prefix, args...)
		var r doctor.Report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			p.t.Fatalf("exit %d, %v:\n%s%s", code, err, out, errs)
		}
		// It gives up after 9 s, which a busy machine may take for what is nothing.
		busy := slices.ContainsFunc(r.Findings, func(f doctor.Finding) bool { return f.Check == "doctor" })
		if !busy || again == 10 {
			return r, code
		}
	}
}

// ills are the looks with a warning or failure, but for what is the machine's own: it may have
// little room or no network.
func ills(r doctor.Report) map[string]doctor.Level {
	ill := map[string]doctor.Level{}
	for _, f := range r.Findings {
		if f.Check == "online" || f.Check == "disk" && f.Level == doctor.Warning {
			continue
		}
		if (f.Level == doctor.Warning && ill[f.Check] != doctor.Failure) || f.Level == doctor.Failure {
			ill[f.Check] = f.Level
		}
	}
	return ill
}

func say(r doctor.Report) string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%-8s %-11s %s\n", f.Level, f.Check, f.Message)
	}
	return b.String()
}

// complaints are what the doctor is to find: by check, the level and a part of the sentence.
type complaints = map[string]complaint

type complaint struct {
	level doctor.Level
	says  string
}

func notes(says string) complaint { return complaint{doctor.OK, says} }
func warns(says string) complaint { return complaint{doctor.Warning, says} }
func fails(says string) complaint { return complaint{doctor.Failure, says} }

// expect checks that just these checks complain, in these words, and each says what to do. That
// the node has recorded errors lately is no complaint of its own where it is not asked for. It
// returns what was expected.
func (p *patient) expect(want complaints) (found []doctor.Finding) {
	p.t.Helper()
	r, code := p.visit()
	got := ills(r)
	if _, asked := want["recent"]; !asked && len(want) > 0 {
		delete(got, "recent")
	}
	failed := false
	for check, c := range want {
		failed = failed || c.level == doctor.Failure
		says := func(f doctor.Finding) bool {
			return f.Check == check && (f.Level == doctor.OK) == (c.level == doctor.OK) && strings.Contains(f.Message, c.says)
		}
		if i := slices.IndexFunc(r.Findings, says); i >= 0 {
			found = append(found, r.Findings[i])
		}
		if c.level != doctor.OK && got[check] != c.level || !slices.ContainsFunc(r.Findings, says) {
			p.t.Errorf("no %s of %s that says %q\n%s%s", c.level, check, c.says, say(r), p.node.logText())
		}
		delete(got, check)
	}
	if len(got) > 0 {
		p.t.Errorf("complains also: %v\n%s%s", got, say(r), p.node.logText())
	}
	if (code == exitFailed) != failed {
		p.t.Errorf("exit code %d", code)
	}
	for _, f := range r.Findings {
		if f.Level != doctor.Warning && f.Level != doctor.Failure {
			continue
		}
		if f.Hint == "" && f.Check != "config" {
			p.t.Errorf("no hint for: %s", f.Message)
		}
		p.t.Logf("%s %s: %s -> %s", f.Level, f.Check, f.Message, f.Hint)
	}
	p.agree(r)
	return found
}

// agree checks that the doctor, `status` and the page say what the node says of its parts, in its
// words.
func (p *patient) agree(r doctor.Report) {
	p.t.Helper()
	status, _, code := command(p.t, "status", "--json", "--config", os.DevNull, "--admin-listen", orAny(p.admin))
	var said admin.Status
	if code == exitFailed || json.Unmarshal([]byte(status), &said) != nil || len(said.Conditions) == 0 {
		return // the node does not answer, or has nothing to say
	}
	text, _, _ := command(p.t, "status", "--config", os.DevNull, "--admin-listen", orAny(p.admin))
	_, page := p.node.get(p.node.admin + "/")
	page = html.UnescapeString(page)
	for _, c := range said.Conditions {
		for where, all := range map[string]string{"doctor": say(r), "status": text, "page": page} {
			if !strings.Contains(all, c.Text) {
				p.t.Errorf("not said by %s: %s\n%s", where, c.Text, all)
			}
		}
	}
}

func TestDoctorWell(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	before := tree(t, p.client.Dir, p.node.dir)
	p.expect(complaints{})
	if after := tree(t, p.client.Dir, p.node.dir); !slices.Equal(before, after) {
		t.Errorf("before %q\nafter %q", before, after)
	}
	r, _ := p.visit()
	for _, want := range []string{"signatures  Nix accepts /nix/store/", "shared      220 of ", "asked first, with priority 30", "database    read "} {
		if !strings.Contains(say(r), want) {
			t.Errorf("no %q in\n%s", want, say(r))
		}
	}
	// For people.
	out, _, _ := commandIn(t, nil, nil, "doctor", "--config", os.DevNull, "--admin-listen", "127.0.0.1:1", "--listen", "127.0.0.1:1", "--p2p=false", "--upstream", p.other)
	if !strings.Contains(out, "failure  daemon") || !strings.Contains(out, "-> start it") || !strings.Contains(out, "failures: ") {
		t.Errorf("%s", out)
	}
}

// tree is what is in directories, with sizes and times, but for nix.conf and what the node
// itself writes meanwhile.
func tree(t *testing.T, dirs ...string) (all []string) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err == nil && filepath.Base(name) != "nix.conf" {
				all = append(all, fmt.Sprint(name, info.Size(), info.ModTime()))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// Each row makes one fault, as people meet it.
func TestDoctorFaults(t *testing.T) {
	t.Parallel()
	well := newPatient(t) // shared by the rows whose node stays as it is
	page := newDoctorPage(t, well)
	for _, tt := range []struct {
		name string
		own  []string // flags of a node of the row's own
		make func(p *patient)
		want complaints
	}{
		{"daemon down", []string{}, func(p *patient) { p.node.stop() }, complaints{"daemon": fails("nothing listens on "), "substituter": fails("nothing listens on ")}},
		{"daemon hangs", []string{}, func(p *patient) {
			_ = p.node.cmd.Process.Signal(syscall.SIGSTOP)
			node := p.node.cmd.Process
			p.t.Cleanup(func() { _ = node.Signal(syscall.SIGCONT) })
		}, complaints{"daemon": fails("takes connections and does not answer"), "substituter": fails("takes connections and does not answer")}},
		{"Nix does not use it", nil, func(p *patient) { p.set("substituters", p.other) }, complaints{"used": fails("is not among the substituters of Nix")}},
		{"the user's settings replace it", nil, func(p *patient) { p.env = append(p.env, "NIX_CONFIG=substituters = "+p.other) }, complaints{"used": fails("but this user's own settings replace that list")}},
		{"Nix is not to substitute", nil, func(p *patient) { p.set("substitute", "false") }, complaints{"used": fails("Nix is told not to substitute at all")}},
		{"key missing in nix.conf", nil, func(p *patient) { p.set("trusted-public-keys", "") }, complaints{"keys": fails("Nix does not trust 1 of the keys"), "signatures": fails("Nix refuses what it is offered for ")}},
		{"another key of the same name", nil, func(p *patient) {
			p.set("trusted-public-keys", keyName(p.corpus.PublicKey)+":"+strings.Repeat("A", 43)+"=")
		}, complaints{"keys": fails("different keys with the name "), "signatures": fails("Nix refuses what it is offered for ")}},
		{"unsigned paths accepted", nil, func(p *patient) { p.set("require-sigs", "false") }, complaints{"keys": warns("Nix accepts unsigned paths")}},
		{"absence remembered", []string{"--store-root", os.TempDir() + "/nothing"}, rememberAbsence, complaints{"remembered": warns("as absent from ")}},
		{"priority remembered", []string{"--priority", "50"}, rememberPriority, complaints{"remembered": warns("Nix remembers priority 50 for ")}},
		{"database unreadable", []string{}, breakDatabase, complaints{"database": fails("cannot be read: nothing of this machine's store is used or shared")}},
		{"disk full", []string{}, fillDisk, complaints{"disk": fails("is full, for the NAR cache")}},
		{"upstream unreachable", nil, func(p *patient) { p.flag("--upstream", "http://127.0.0.1:1") }, complaints{"upstream": fails("http://127.0.0.1:1 cannot be reached")}},
		{"configuration changed, not restarted", nil, func(p *patient) { p.flag("--upstream", cacheServer(p.t, 41, time.Time{})) }, complaints{"upstream": fails("the running node does not have ")}},
		{"priority changed, not restarted", nil, func(p *patient) { p.flag("--priority", "20") }, complaints{"substituter": warns("answers with priority 30, the configuration says 20")}},
		{"log in to the Wi-Fi first", nil, func(p *patient) {
			url := newServer(p.t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>log in</html>") })
			p.flag("--upstream", url)
		}, complaints{"upstream": fails("answers with a web page (a login page?)")}},
		{"log in to the service's network first", []string{}, func(p *patient) {
			p.upstream(func(w http.ResponseWriter) { fmt.Fprint(w, "<!DOCTYPE html><html>log in</html>") })
			p.node.get(p.node.url + "/" + strings.Repeat("a", 32) + ".narinfo")
		}, complaints{"upstream": fails(": answers with a web page (a login page?)")}},
		// Only the node is served worse: its requests have a Via header.
		{"the service's way out is broken", []string{}, func(p *patient) { p.upstream(func(w http.ResponseWriter) { hangUp(w) }) }, complaints{"upstream": fails("the node ")}},
		{"the service's way out is silent", []string{}, func(p *patient) {
			stop := make(chan struct{})
			p.upstream(func(http.ResponseWriter) { <-stop })
			p.t.Cleanup(func() { close(stop) })
		}, complaints{"upstream": warns("the node got no answer from its caches within 3s")}},
		{"one of two upstreams is down", []string{"--upstream", "http://127.0.0.1:1"}, func(p *patient) { p.args = p.node.args }, complaints{"upstream": warns("the node does not ask http://127.0.0.1:1")}},
		{"upstream wants credentials", []string{}, func(p *patient) { p.upstream(func(w http.ResponseWriter) { w.WriteHeader(http.StatusUnauthorized) }) }, complaints{"upstream": fails("wants credentials, and has not accepted those of this node: status 401 Unauthorized")}},
		{"credentials of Nix unreadable", []string{}, func(p *patient) {
			p.node.env = append(p.node.env, "NIX_CONF_DIR="+p.client.Dir, "NETRC=")
			conf := "netrc-file = /dev/null/netrc\n"
			if err := os.WriteFile(filepath.Join(p.client.Dir, "nix.conf"), []byte(conf), 0o600); err != nil {
				p.t.Fatal(err)
			}
			p.restart(p.args...)
		}, complaints{"upstream": warns("caches are asked without the credentials that Nix has: open /dev/null/netrc")}},
		{"upstream sends wrong narinfos", []string{}, func(p *patient) {
			p.upstream(func(w http.ResponseWriter) { fmt.Fprint(w, "StorePath: /nix/store/x\n") })
			p.node.get(p.node.url + "/" + strings.Repeat("a", 32) + ".narinfo")
		}, complaints{"recent": warns("sent a narinfo that is not valid"), "upstream": fails("the node gets no answer from its caches: ")}},
		{"no trusted key signs what the upstream has", []string{}, func(p *patient) {
			path := nixtest.NewPath("foreign", 100)
			up := nixtest.NewUpstream(p.t, nixtest.UpstreamConfig{Paths: []nixtest.Path{path}, Keys: []nixtest.Key{nixtest.NewKey("foreign-1")}})
			p.flag("--upstream", up.URL())
			p.restart(p.args...)
			p.node.get(p.node.url + "/" + path.Hash().String() + ".narinfo")
		}, complaints{"upstream": warns("has sent no path that a trusted key signed: 1 narinfos were refused")}},
		{"the port for peers is taken", []string{}, func(p *patient) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				p.t.Fatal(err)
			}
			p.t.Cleanup(func() { _ = l.Close() })
			p.restart(append(p.args, "--p2p=true", "--mdns=false", "--p2p-listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port))...)
			p.said("cannot listen for peers")
		}, complaints{"port": warns("cannot listen for peers on /ip4/127.0.0.1/tcp/"), "peers": warns("no peers: this machine shares with no other")}},
		{"a neighbour of another site calls", []string{}, func(p *patient) {
			p.meet(p.secret(), "--swarm-key-file", p.secret())
		}, complaints{"peers": warns("there is a nixp2p at 127.0.0.1 with another swarm key, or without one: it is no peer")}},
		{"a neighbour without the secret is called", []string{}, func(p *patient) {
			p.call("", "--swarm-key-file", p.secret())
		}, complaints{"peers": warns("there is a nixp2p at 127.0.0.1 with another swarm key, or without one: it is no peer")}},
		{"the secret is missing here, a neighbour calls", []string{}, func(p *patient) {
			p.meet(p.secret())
		}, complaints{"peers": warns("there is a nixp2p at 127.0.0.1 with a swarm key, and this one has none: it is no peer")}},
		{"the secret is missing here, a neighbour is called", []string{}, func(p *patient) {
			p.call(p.secret())
		}, complaints{"peers": warns("there is a nixp2p at 127.0.0.1 with a swarm key, and this one has none: it is no peer")}},
		{"cloned with its state", []string{}, cloned, complaints{"identity": notes("has the same identity ")}},
		{"a bootstrap address that is not allowed", []string{}, func(p *patient) {
			p.restart(append(p.args, "--p2p=true", "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--bootstrap", "/ip4/100.64.1.1/tcp/7656")...)
			p.said("--allow-cidr keeps out")
		}, complaints{"bootstrap": warns("which --allow-cidr keeps out"), "peers": warns("no peers: this machine shares with no other")}},
		{"a proxy between Nix and the node", nil, func(p *patient) { p.env = append(p.env, "all_proxy=http://u:secret@127.0.0.1:1") }, complaints{"proxy": fails("through the proxy http://u:xxxxx@127.0.0.1:1 ($all_proxy), which cannot reach it")}},
		{"clock wrong", nil, func(p *patient) {
			p.flag("--upstream", cacheServer(p.t, 40, time.Now().Add(-26*time.Hour)))
		}, complaints{"clock": fails("the clock is 26h0m"), "upstream": fails("the running node does not have ")}},
		{"admin port taken", nil, func(p *patient) {
			p.admin = newServer(p.t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"status":"up"}`) })
		}, complaints{"daemon": fails("another program answers on ")}},
		{"substituter port taken", nil, func(p *patient) {
			p.url = newServer(p.t, http.NotFound)
			p.set("substituters", p.url+" "+p.other)
		}, complaints{"substituter": fails("another program answers on "), "signatures": warns("is shared, but asked for it the node answers 404")}},
		{"other cache in front", nil, func(p *patient) {
			p.set("substituters", cacheServer(p.t, 10, time.Time{})+" "+p.url+" "+p.other)
		}, complaints{"order": warns("asked before nixp2p (30): ")}},
		{"only substituter", nil, func(p *patient) { p.set("substituters", p.url) }, complaints{"used": warns("is the only substituter: while it is stopped, nothing can be substituted")}},
		{"nix.conf broken", nil, func(p *patient) { p.conf = append(p.conf, "what is this") }, complaints{"nix": fails("Nix cannot read its configuration: ")}},
		{"connect-timeout missing", nil, func(p *patient) { p.set("connect-timeout", "") }, complaints{"nix": warns("connect-timeout is not set: a cache that cannot be reached costs minutes")}},
		{"fallback crashes", nil, func(p *patient) { p.set("fallback", "true") }, complaints{"nix": warns("this Nix crashes with it when a cache goes away")}},
		{"nothing is shared", []string{}, func(p *patient) {
			p.flag("--share-key", "other-1")
			p.restart(p.args...)
		}, complaints{"shared": warns("0 of "), "config": warns("other-1")}},
		{"peer port shut", nil, func(p *patient) {
			p.args = append(p.args, "--p2p=true", "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/1")
		}, complaints{"port": fails("nothing listens on /ip4/127.0.0.1/tcp/1: no peer can reach this machine"), "peers": warns("no peers: this machine shares with no other")}},
		{"cache directory unusable", []string{}, func(p *patient) {
			p.flag("--cache-dir", "/dev/null/cache")
			p.restart(p.args...)
		}, complaints{"cache": warns("NARs are passed through and not kept")}},
		{"state directory unusable", []string{}, func(p *patient) {
			p.flag("--state-dir", "/dev/null/state")
			p.restart(p.args...)
		}, complaints{"state": warns("nothing is remembered over a restart")}},
		{"configuration wrong", nil, func(p *patient) { p.args = append(p.args, "--priority", "many") }, complaints{"config": fails("many")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := well.admit(t)
			if tt.own != nil {
				p = newPatient(t, tt.own...)
			}
			tt.make(p)
			page.add(tt.name, p, p.expect(tt.want))
		})
	}
}

// upstream restarts the node with an upstream that answers what comes through the node like
// this, and all else as it should.
func (p *patient) upstream(node func(http.ResponseWriter)) {
	well := cacheServer(p.t, 40, time.Time{})
	url := newServer(p.t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Via") != "" {
			node(w)
			return
		}
		http.Redirect(w, r, well+r.URL.Path, http.StatusTemporaryRedirect)
	})
	p.flag("--upstream", url)
	p.restart(p.args...)
}

// peering are the flags of a node that talks with others on this machine.
func peering(flags ...string) []string {
	return append([]string{"--p2p=true", "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0"}, flags...)
}

// secret returns a file with a secret that no other site has.
func (p *patient) secret() string {
	out, _, _ := command(p.t, "swarm-key")
	name := filepath.Join(p.t.TempDir(), "swarm.key")
	if err := os.WriteFile(name, []byte(out), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return name
}

// neighbour starts another node. secret is its swarm key's file, "" if it has none.
func (p *patient) neighbour(secret string, flags ...string) *process {
	if secret != "" {
		flags = append(flags, "--swarm-key-file", secret)
	}
	return startDaemon(p.t, append([]string{"--upstream", p.other}, peering(flags...)...)...)
}

// meet restarts the node with these flags and has a neighbour call it.
func (p *patient) meet(secret string, flags ...string) {
	p.restart(append(p.args, peering(flags...)...)...)
	p.neighbour(secret, "--bootstrap", p.node.peerAddr())
	p.said("there is a nixp2p at ")
}

// call restarts the node with these flags, so that it calls a neighbour.
func (p *patient) call(secret string, flags ...string) {
	n := p.neighbour(secret)
	p.restart(append(p.args, peering(append(flags, "--bootstrap", n.peerAddr())...)...)...)
	p.said("there is a nixp2p at ")
}

// cloned: another machine was made from an image of this one.
func cloned(p *patient) {
	p.restart(append(p.args, peering()...)...)
	key, err := os.ReadFile(p.node.dir + "/state/identity.key")
	if err != nil {
		p.t.Fatal(err)
	}
	n := &process{t: p.t, dir: p.t.TempDir()}
	if err := os.MkdirAll(n.dir+"/state", 0o700); err == nil {
		err = os.WriteFile(n.dir+"/state/identity.key", key, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	n.args = append([]string{"--upstream", p.other}, peering()...)
	n.start()
	p.t.Cleanup(n.stop)
	p.restart(append(p.args, "--bootstrap", n.peerAddr())...)
	p.said("has the same identity ")
}

// said waits until the node says something in its status.
func (p *patient) said(text string) {
	p.t.Helper()
	eventually(p.t, func() bool {
		_, status := p.node.get(p.node.admin + "/api/v1/status")
		return strings.Contains(status, text)
	})
}

// hangUp ends a connection without an answer.
func hangUp(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
}

// rememberAbsence: Nix asks for a path that comes into the store a moment later.
func rememberAbsence(p *patient) {
	if _, _, err := p.client.PathInfoR(p.t.Context(), p.url, p.corpus.Top); err == nil {
		p.t.Fatal("the path was not to be there")
	}
	p.restart(corpusArgs(p.corpus, p.other, p.corpus.StoreRoot)...)
}

// rememberPriority: Nix asks a node whose priority is then changed.
func rememberPriority(p *patient) {
	if _, _, err := p.client.PathInfoR(p.t.Context(), p.url, p.corpus.Top); err != nil {
		p.t.Fatal(err)
	}
	p.restart(corpusArgs(p.corpus, p.other, p.corpus.StoreRoot)...)
}

func breakDatabase(p *patient) {
	root := p.t.TempDir()
	dir := filepath.Join(root, "nix/var/nix/db")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "db.sqlite"), []byte(strings.Repeat("overwritten by somebody ", 1000)), 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.restart(corpusArgs(p.corpus, p.other, root)...)
}

// fillDisk moves the cache to a file system of its own and fills that.
func fillDisk(p *patient) {
	dir := p.t.TempDir()
	if err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", dir).Run(); err != nil {
		p.t.Skipf("skipped: a file system of one's own takes root: %v", err)
	}
	p.t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	p.restart(append(corpusArgs(p.corpus, p.other, p.corpus.StoreRoot), "--cache-dir", dir)...)
	_ = os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 2<<20), 0o600) // as much as fits
}

// Without any link but loopback the nix command thinks itself offline.
func TestDoctorOffline(t *testing.T) {
	t.Parallel()
	if err := exec.Command("unshare", "-n", "true").Run(); err != nil {
		t.Skipf("skipped: a network of one's own takes root and unshare: %v", err)
	}
	p := newPatient(t)
	p.prefix = []string{"unshare", "-n", "--"}
	r, _ := p.visit()
	if text := say(r); !strings.Contains(text, "warning  online") || ills(r)["used"] != "" {
		t.Errorf("%s", text)
	}
}

// One family of port 5353 is taken by a program that does not share it.
func TestDoctorHalfOfMulticast(t *testing.T) {
	t.Parallel()
	if !ownNetwork(t) {
		return
	}
	l, err := net.ListenPacket("udp4", "0.0.0.0:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := newPatient(t)
	p.restart(append(p.args, "--p2p=true", "--p2p-listen", "/ip4/127.0.0.1/tcp/0")...)
	p.said("no multicast over IPv4")
	p.set("substituters", p.url+" "+p.other)
	p.expect(complaints{
		"mdns":  warns("no multicast over IPv4: listen udp4 0.0.0.0:5353: bind: address already in use; peers on the link are not found by it"),
		"peers": warns("no peers: this machine shares with no other"),
	})
}

// On a machine with nothing there is something to say of everything, and an end.
func TestDoctorNothingThere(t *testing.T) {
	t.Parallel() // it waits for those who hang
	dir := t.TempDir()
	env := []string{"PATH=" + dir, "NIX_CONF_DIR=" + dir, "HOME=" + dir, "XDG_CONFIG_DIRS=" + dir, "XDG_CONFIG_HOME=" + dir, "XDG_CACHE_HOME=" + dir, "NIX_CONFIG="}
	hanging := newServer(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	start := time.Now()
	out, errs, code := commandIn(t, env, nil, "doctor", "--json", "--config", os.DevNull, "--admin-listen", orAny(hanging), "--listen", orAny(hanging[:len(hanging)-1]+"9"),
		"--upstream", hanging, "--upstream", hanging+"/2", "--store-root", dir, "--state-dir", dir+"/s", "--cache-dir", dir+"/c", "--mdns=false")
	if took := time.Since(start); took > time.Minute { // 9 s, where processes start at once
		t.Errorf("took %v", took)
	}
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitFailed || errs != "" {
		t.Fatalf("exit %d, %v: %s%s", code, err, out, errs)
	}
	ill := ills(r)
	if ill["daemon"] != doctor.Failure || ill["upstream"] != doctor.Failure || ill["database"] != doctor.Warning {
		t.Errorf("%s", say(r))
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
