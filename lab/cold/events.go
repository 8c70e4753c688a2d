//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/lab/hostile"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// fetch runs the client that throws bytes away.
func (s *scene) fetch(ctx context.Context, h *host) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	top, err := nix.ParseStorePath(s.w.corpus.Top)
	if err != nil {
		return err
	}
	what, err := json.Marshal(order{h.Client.Substituters[0], top.Hash()})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", h.NS, self)
	cmd.Env = append(rig.Environ(), clientEnv+"=1")
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(what), &out, &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("client: %w: %s", err, errs.String())
	}
	var res outcome
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	h.client, h.retries = time.Duration(res.CPU*float64(time.Second)), res.Retries
	switch {
	case res.Err != "":
		return errors.New(res.Err)
	case res.Paths != len(s.w.corpus.Paths):
		return fmt.Errorf("%d paths, not %d", res.Paths, len(s.w.corpus.Paths))
	}
	return nil
}

// happen does what the row is about, and notes when; a row in which it did not happen says so.
func (s *scene) happen(ctx context.Context) {
	did := func(what string, args ...any) {
		s.res.note("%s at %.1f s", fmt.Sprintf(what, args...), time.Since(s.begun).Seconds())
	}
	switch s.row.Event {
	case killed:
		n := (s.row.Hosts + 5) / 10
		for i, k := range s.rand.Perm(s.row.Hosts)[:max(1, n)] {
			if !s.came(ctx, 0.2+0.5*float64(i)/float64(max(1, n))) {
				s.res.fail("not all that were to vanish did")
				return
			}
			s.vanish(ctx, s.builders()[k])
			did("%s vanished", s.builders()[k])
		}
	case fetcher:
		h, ok := s.fetcher(ctx)
		if !ok {
			s.res.fail("nobody was seen with half of the largest NAR")
			return
		}
		s.vanish(ctx, h)
		did("%s vanished", h)
	case partition:
		if !s.came(ctx, 0.3) {
			s.res.fail("there was no time to cut the LAN")
			return
		}
		for _, words := range [][]string{{"split", strconv.Itoa(s.row.Hosts / 2)}, {"unsplit"}} {
			if _, err := s.site.LAN.Do(context.WithoutCancel(ctx), words...); err != nil {
				s.res.fail("%v", err)
				return
			}
			did("%s", words[0])
			if words[0] == "split" && !rig.Pause(ctx, 5*time.Second) {
				s.res.note("it was over before")
			}
		}
	}
}

// came waits until the upstream has sent so much of what is to be sent once.
func (s *scene) came(ctx context.Context, part float64) bool {
	_, ok := rig.Until(ctx, s.row.limit(s.w), func() bool {
		return float64(s.site.Cache.NARBytes.Load()) >= part*float64(s.w.fileBytes)
	})
	return ok
}

// fetcher waits until the upstream has given somebody half of the largest NAR.
func (s *scene) fetcher(ctx context.Context) (h *host, ok bool) {
	_, ok = rig.Until(ctx, s.row.limit(s.w), func() bool {
		ip, n := s.site.Cache.Sending(s.w.largest)
		if n < s.w.largeSize/2 {
			return false
		}
		for _, o := range s.builders() {
			if s.site.LAN.IP(o.K) == ip {
				h = o
			}
		}
		return h != nil
	})
	return h, ok
}

// vanish ends a host as pulling its plugs does: nobody hears of it.
func (s *scene) vanish(ctx context.Context, h *host) {
	s.mu.Lock()
	h.gone = true
	s.mu.Unlock()
	if _, err := s.site.LAN.Do(context.WithoutCancel(ctx), "partition", h.String()); err != nil {
		s.res.fail("%v", err)
	}
	if h.Node != nil {
		h.Signal(syscall.SIGKILL)
	}
	h.kill()
}

// hostile are the kinds of the hosts that an event adds.
func (r row) hostile() []string {
	switch r.Event {
	case liars:
		return []string{hostile.Wrong, hostile.Wrong, hostile.Wrong}
	case attackers:
		return hostile.AllKinds
	}
	return nil
}

// inviteHostile starts hostile peers, and connects them to all nodes.
func (s *scene) inviteHostile(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	task := hostile.Task{Lie: s.w.corpus.Caches["xz"]}
	for i, h := range s.builders() {
		addr, err := s.hosts[(i+1)%s.row.Hosts].AddrOf(ctx, h.Host)
		if err != nil {
			return err
		}
		task.Connect = append(task.Connect, addr)
	}
	kinds := s.row.hostile()
	reports := make(chan error, len(kinds))
	for i, h := range s.hosts[s.row.Hosts:] {
		task.Kind = kinds[i]
		text, err := json.Marshal(task)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "ip", "netns", "exec", h.NS, self)
		cmd.Env = append(rig.Environ(), strangerEnv+"=1")
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		var errs strings.Builder
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			return err
		}
		// It lies until the LAN goes, which takes all processes with it, or ctx ends.
		s.hostile.Go(func() {
			dec := json.NewDecoder(out)
			var rep hostile.Report
			if err := dec.Decode(&rep); err != nil {
				reports <- fmt.Errorf("%s, hostile: %w", h, err)
			} else {
				reports <- nil
			}
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
			_ = in.Close()
		})
		if _, err := in.Write(append(text, '\n')); err != nil {
			return err
		}
	}
	for range kinds {
		select {
		case err := <-reports:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
