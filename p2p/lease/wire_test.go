package lease

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

var (
	xzForm   = nix.Form{Compression: nix.XZ, File: nix.FileHash{1, 2}}
	zstdForm = nix.Form{Compression: nix.Zstd, File: nix.FileHash{3}}
)

func someRequests() []Request {
	many := nodes(maxNamed)
	return []Request{
		{Verb: Ask, Nar: narOf(1), Form: xzForm, Size: 100},
		{Verb: Ask, Nar: narOf(1), Size: 100, Bytes: 99, Got: 100, Alone: true, Hops: 2, Tried: many[:1], Failed: many},
		{Verb: Progress, Nar: narOf(1), Form: zstdForm, Size: maxSize, Bytes: maxSize, Got: maxSize, From: many[0]},
		{Verb: Progress, Nar: narOf(1), Size: 1, Failed: many[:2]},
		{Verb: Release, Nar: narOf(1), Size: 1},
	}
}

func someAnswers() []Answer {
	var full []Source
	for range MaxSources {
		full = append(full, Source{
			Node: NodeID(strings.Repeat("n", MaxNodeID)), Addr: strings.Repeat("a", maxAddr), Form: xzForm, Size: 10, Bytes: 10, Got: 10,
		})
	}
	return []Answer{
		{Kind: Noted},
		{Kind: Fetch, Term: Term},
		{Kind: Fetch},
		{Kind: Follow, Sources: []Source{{Node: "n", Size: 1}, {Node: "o", Addr: "/ip4/10.0.0.1/tcp/1", Form: zstdForm, Size: 9, Bytes: 4, Got: 5}}},
		{Kind: Follow, Sources: full},
		{Kind: Redirect, Node: "n", Addr: "/ip4/10.0.0.1/tcp/1"},
	}
}

func TestMessages(t *testing.T) {
	for _, r := range someRequests() {
		b := r.Append(nil)
		if got, err := DecodeRequest(b); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v reads back as %+v, %v", r, got, err)
		}
		for i := range b {
			if _, err := DecodeRequest(b[:i]); !errors.Is(err, ErrMessage) {
				t.Errorf("%+v cut at %d: %v", r, i, err)
			}
		}
		if _, err := DecodeRequest(append(b, 0)); !errors.Is(err, ErrMessage) {
			t.Errorf("%+v with more behind it: %v", r, err)
		}
	}
	for _, a := range someAnswers() {
		b := a.Append(nil)
		if got, err := DecodeAnswer(b); err != nil || !reflect.DeepEqual(got, a) || len(b) > MaxMessage {
			t.Errorf("%+v reads back as %+v, %v", a, got, err)
		}
		for i := range b {
			if _, err := DecodeAnswer(b[:i]); !errors.Is(err, ErrMessage) {
				t.Errorf("%+v cut at %d: %v", a, i, err)
			}
		}
	}
}

func TestMessagesRefused(t *testing.T) {
	ask := Request{Verb: Ask, Nar: narOf(1), Form: xzForm, Size: 100}
	for name, r := range map[string]Request{
		"no verb":              {Nar: narOf(1), Size: 1},
		"unknown verb":         {Verb: 9, Nar: narOf(1), Size: 1},
		"no size":              {Verb: Ask, Nar: narOf(1)},
		"negative size":        {Verb: Ask, Nar: narOf(1), Size: -1},
		"too large":            {Verb: Ask, Nar: narOf(1), Size: maxSize + 1},
		"more than all":        {Verb: Progress, Nar: narOf(1), Size: 1, Bytes: 2},
		"negative bytes":       {Verb: Progress, Nar: narOf(1), Size: 1, Bytes: -1},
		"asks for what it has": {Verb: Ask, Nar: narOf(1), Size: 1, Bytes: 1},
		"too many hops":        {Verb: Ask, Nar: narOf(1), Size: 1, Hops: MaxHops + 1},
		"hops of a report":     {Verb: Progress, Nar: narOf(1), Size: 1, Hops: 1},
		"tried of a report":    {Verb: Progress, Nar: narOf(1), Size: 1, Tried: nodes(1)},
		"source of a question": {Verb: Ask, Nar: narOf(1), Size: 1, From: "n"},
		"empty node":           {Verb: Ask, Nar: narOf(1), Size: 1, Failed: []NodeID{""}},
		"long node":            {Verb: Ask, Nar: narOf(1), Size: 1, Failed: []NodeID{NodeID(strings.Repeat("n", MaxNodeID+1))}},
		"no file hash":         {Verb: Ask, Nar: narOf(1), Size: 1, Form: nix.Form{Compression: nix.XZ}},
	} {
		if got, err := DecodeRequest(r.Append(nil)); !errors.Is(err, ErrMessage) || !reflect.DeepEqual(got, Request{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, a := range map[string]Answer{
		"no kind":      {},
		"unknown kind": {Kind: 9},
		"no sources":   {Kind: Follow},
		"no node":      {Kind: Redirect},
		"empty source": {Kind: Follow, Sources: []Source{{Size: 1}}},
		"empty NAR":    {Kind: Follow, Sources: []Source{{Node: "n"}}},
	} {
		if got, err := DecodeAnswer(a.Append(nil)); !errors.Is(err, ErrMessage) || !reflect.DeepEqual(got, Answer{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	b := ask.Append(nil)
	for name, mangle := range map[string]func([]byte){
		"other version": func(b []byte) { b[0]++ },
		"unknown flag":  func(b []byte) { b[2+32] = 2 },
		"unknown form":  func(b []byte) { b[2+32+2] = 3 },
	} {
		bad := bytes.Clone(b)
		mangle(bad)
		if _, err := DecodeRequest(bad); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DecodeRequest(make([]byte, MaxMessage+1)); !errors.Is(err, ErrMessage) {
		t.Errorf("too long: %v", err)
	}
	if _, err := DecodeAnswer([]byte{Version, byte(Fetch), 0xff, 0, 0, 0}); !errors.Is(err, ErrMessage) {
		t.Errorf("lease without end: %v", err)
	}
}

// TestAppendBounds: what is too long for a message is shortened, not sent.
func TestAppendBounds(t *testing.T) {
	r := Request{Verb: Ask, Nar: narOf(1), Size: 1, Failed: nodes(maxNamed + 5)}
	if got, err := DecodeRequest(r.Append(nil)); err != nil || len(got.Failed) != maxNamed {
		t.Errorf("%d failed, %v", len(got.Failed), err)
	}
	a := Answer{Kind: Follow}
	for _, n := range nodes(MaxSources + 5) {
		a.Sources = append(a.Sources, Source{Node: n, Addr: strings.Repeat("a", 300), Size: 1})
	}
	if got, err := DecodeAnswer(a.Append(nil)); err != nil || len(got.Sources) != MaxSources || got.Sources[0].Addr != "" {
		t.Errorf("%d sources, %v", len(got.Sources), err)
	}
	a = Answer{Kind: Fetch, Term: time.Hour}
	if got, err := DecodeAnswer(a.Append(nil)); err != nil || got.Term != Term {
		t.Errorf("%v, %v", got.Term, err)
	}
}

func FuzzRequest(f *testing.F) {
	for _, r := range someRequests() {
		f.Add(r.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRequest(b)
		if err != nil {
			return
		}
		if !bytes.Equal(r.Append(nil), b) {
			t.Errorf("%+v encodes differently", r)
		}
		// Whatever is decoded a table takes.
		table := NewCoordinator("self")
		for i := range 3 {
			a := table.Handle(NodeID('a'+rune(i)), machine.ID{}, r, nodes(2), time.Unix(int64(i), 0))
			if _, err := DecodeAnswer(a.Append(nil)); err != nil {
				t.Errorf("%+v: %v", a, err)
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, a := range someAnswers() {
		f.Add(a.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := DecodeAnswer(b)
		if err != nil {
			return
		}
		if !bytes.Equal(a.Append(nil), b) {
			t.Errorf("%+v encodes differently", a)
		}
		// Whatever is decoded a session takes, and it goes on.
		now := time.Unix(1, 0)
		s := NewSession("self", Want{Nar: narOf(1), Forms: []source.Sized{{Size: 10}}}, nodes(3), nil, now)
		for range 20 {
			switch step := s.Next(now); step.Kind {
			case AskStep:
				s.Answered(step.Node, a, now)
			case FollowStep:
				s.Stalled(step.Sources[0].Node, nodes(3), now)
			case FetchStep:
				s.Answered("node", a, now)
			}
			now = now.Add(time.Second)
		}
		if s.Next(now).Kind == AskStep {
			t.Errorf("still asking after %+v", a)
		}
	})
}
