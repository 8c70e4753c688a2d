package source

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// Condition explains how a part of the node works, as long as that lasts. Status, page and doctor
// show it in its own words.
type Condition struct {
	Part Part
	Text string // a sentence without capital and full stop: what, why, and what follows from it
	Hint string // what to do about it, "" if nothing can be done
	// Note is set if nothing is wrong: the condition only explains, for example, which
	// interfaces are left out.
	Note bool
}

// Part is what a Condition is about. The doctor reports it under the check of the same name, if
// there is one.
type Part string

// The parts.
const (
	PartPeers     Part = "peers"     // connections to other nodes, and which are refused
	PartPeerPort  Part = "port"      // the address on which peers are accepted
	PartMDNS      Part = "mdns"      // port 5353, by address family
	PartLinks     Part = "links"     // interfaces and addresses that are used or left out
	PartBootstrap Part = "bootstrap" // configured addresses of peers
	PartIdentity  Part = "identity"  // the key by which peers know this node
	PartUpstream  Part = "upstream"  // upstream caches: credentials, signatures, encodings
	PartCache     Part = "cache"     // the directory of NARs
	PartState     Part = "state"     // what is remembered over a restart
	PartStore     Part = "database"  // Nix's database and the store
	PartAdmin     Part = "admin"     // page, API and metrics
	PartProcess   Part = "process"   // descriptors, memory, log
)

// Conditions are those that hold now. The zero value is ready, nil drops everything; it is safe
// for concurrent use.
type Conditions struct {
	mu  sync.Mutex
	set map[string]held
}

type held struct {
	Condition
	until time.Time // zero: until it is cleared
}

// maxConditions bounds Conditions: the text of some comes from other machines.
const maxConditions = 64

// Set makes c hold until Clear, in place of what held under the same key, and reports whether
// that is news: log it then.
func (s *Conditions) Set(key string, c Condition) bool { return s.put(key, held{Condition: c}) }

// SetFor is Set for something that was seen now and counts for d.
func (s *Conditions) SetFor(key string, c Condition, d time.Duration) bool {
	return s.put(key, held{c, time.Now().Add(d)})
}

func (s *Conditions) put(key string, h held) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	was, is := s.set[key]
	if !is && len(s.set) >= maxConditions {
		return false
	}
	if s.set == nil {
		s.set = make(map[string]held)
	}
	s.set[key] = h
	return was.Condition != h.Condition
}

// Clear ends what holds under key, and reports whether there was anything.
func (s *Conditions) Clear(key string) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, is := s.set[key]
	delete(s.set, key)
	return is
}

// List returns those that hold now, in the order of their keys.
func (s *Conditions) List() []Condition {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	var list []Condition
	for _, key := range slices.Sorted(maps.Keys(s.set)) {
		list = append(list, s.set[key].Condition)
	}
	return list
}

// expire drops what counts no more. The caller holds mu.
func (s *Conditions) expire() {
	now := time.Now()
	maps.DeleteFunc(s.set, func(_ string, h held) bool { return !h.until.IsZero() && now.After(h.until) })
}

// Report is Set, and logs c when it begins to hold: once, also if its text changes meanwhile.
func (s *Conditions) Report(log *slog.Logger, key string, c Condition) { s.ReportFor(log, key, c, 0) }

// ReportFor is Report for something that was seen now and counts for d; 0: until Over.
func (s *Conditions) ReportFor(log *slog.Logger, key string, c Condition, d time.Duration) {
	_, known := s.get(key)
	h := held{Condition: c}
	if d > 0 {
		h.until = time.Now().Add(d)
	}
	if s.put(key, h) && !known {
		if c.Note {
			log.Info("note", "part", c.Part, "what", c.Text)
		} else {
			log.Warn("a part of the node works with less", "part", c.Part, "what", c.Text, "hint", c.Hint)
		}
	}
}

// Over is Clear, and logs the end of what was reported.
func (s *Conditions) Over(log *slog.Logger, key string) {
	was, is := s.get(key)
	if is && s.Clear(key) && !was.Note {
		log.Info("a part of the node works again", "part", was.Part, "about", key)
	}
}

func (s *Conditions) get(key string) (Condition, bool) {
	if s == nil {
		return Condition{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	h, is := s.set[key]
	return h.Condition, is
}
