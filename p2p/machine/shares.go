package machine

import (
	"container/list"
	"sync"
	"time"
)

// Limits bound what a table of shares holds, in whatever unit its costs have.
type Limits struct {
	Total int64 // of all machines together
	Each  int64 // of one machine; 0: Total
	// Settle is how long an entry is safe from new ones of its own machine, so that a fast
	// flood does not push out what has just begun.
	Settle time.Duration
}

// Shares is a bounded table of entries, each with a machine and a cost. It is safe for
// concurrent use.
//
// When there is no room for a new entry, the machine that holds the most gives way, by the
// entries that were not used for longest. If the new entry's machine holds as much as any
// other, its own entries give way, and where it has none the new entry is refused. Reserved
// entries give way last.
type Shares[K comparable] struct {
	limits Limits

	mu       sync.Mutex
	total    int64
	entries  map[K]*entry[K]
	machines map[ID]*holding
}

type entry[K comparable] struct {
	key      K
	machine  ID
	cost     int64
	since    time.Time
	reserved bool
	place    *list.Element // in the order of use of its machine
}

// holding is what one machine holds, least recently used first.
type holding struct {
	order *list.List // of *entry
	cost  int64
	open  int64 // the part of cost that is not reserved
}

// NewShares returns an empty table.
func NewShares[K comparable](l Limits) *Shares[K] {
	if l.Each == 0 {
		l.Each = l.Total
	}
	return &Shares[K]{limits: l, entries: make(map[K]*entry[K]), machines: make(map[ID]*holding)}
}

// Put adds k with its cost, or changes the cost of k, which is no use of it. It returns the
// entries that gave way, which are out of the table. If k itself has to, ok is false, k is
// not in the table, and nothing else gave way. Machine and reserved count for new entries.
func (s *Shares[K]) Put(m ID, k K, cost int64, reserved bool) (gone []K, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[k]
	if e != nil {
		s.charge(e, cost-e.cost)
	} else {
		h := s.machines[m]
		if h == nil {
			h = &holding{order: list.New()}
			s.machines[m] = h
		}
		e = &entry[K]{key: k, machine: m, since: time.Now(), reserved: reserved}
		e.place = h.order.PushBack(e)
		s.entries[k] = e
		s.charge(e, cost)
	}
	victims, ok := s.makeRoom(e)
	if !ok {
		s.remove(e)
		return nil, false
	}
	for _, v := range victims {
		gone = append(gone, v.key)
		s.remove(v)
	}
	return gone, true
}

// makeRoom chooses the entries that give way for e, which is in the table already.
func (s *Shares[K]) makeRoom(e *entry[K]) (victims []*entry[K], ok bool) {
	taken := make(map[ID]int64) // by victims
	over, own := s.total-s.limits.Total, s.machines[e.machine].cost-s.limits.Each
	chosen := make(map[*entry[K]]bool)
	for over > 0 || own > 0 {
		from := e.machine
		if own <= 0 {
			from = s.largest(e, taken)
		}
		v := s.oldest(from, e, chosen)
		if v == nil {
			return nil, false
		}
		chosen[v] = true
		victims = append(victims, v)
		taken[from] += v.cost
		over -= v.cost
		if from == e.machine {
			own -= v.cost
		}
	}
	return victims, true
}

// largest returns the machine with the most that is not reserved; of equals, that of e.
func (s *Shares[K]) largest(e *entry[K], taken map[ID]int64) ID {
	id, most := e.machine, s.machines[e.machine].open-taken[e.machine]
	if e.reserved || most < 0 {
		most = 0
	}
	for m, h := range s.machines {
		if left := h.open - taken[m]; left > most {
			id, most = m, left
		}
	}
	return id
}

// oldest returns the entry of a machine that gives way to e next, nil if there is none.
func (s *Shares[K]) oldest(m ID, e *entry[K], chosen map[*entry[K]]bool) *entry[K] {
	var last *entry[K]
	for at := s.machines[m].order.Front(); at != nil; at = at.Next() {
		v := at.Value.(*entry[K])
		switch {
		case v == e || chosen[v]:
		case v.reserved:
			if last == nil && e.reserved {
				last = v
			}
		case m == e.machine && time.Since(v.since) < s.limits.Settle:
			return last
		default:
			return v
		}
	}
	return last
}

func (s *Shares[K]) charge(e *entry[K], by int64) {
	h := s.machines[e.machine]
	e.cost += by
	h.cost += by
	s.total += by
	if !e.reserved {
		h.open += by
	}
}

func (s *Shares[K]) remove(e *entry[K]) {
	s.charge(e, -e.cost)
	delete(s.entries, e.key)
	h := s.machines[e.machine]
	h.order.Remove(e.place)
	if h.order.Len() == 0 {
		delete(s.machines, e.machine)
	}
}

// Remove takes k out, if it is there.
func (s *Shares[K]) Remove(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[k]; e != nil {
		s.remove(e)
	}
}

// Use notes that k has just been of use.
func (s *Shares[K]) Use(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[k]; e != nil {
		s.machines[e.machine].order.MoveToBack(e.place)
	}
}

// Has reports whether k is in the table.
func (s *Shares[K]) Has(k K) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[k] != nil
}

// Len returns the number of entries.
func (s *Shares[K]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries)
}

// Cost returns the cost of all entries together.
func (s *Shares[K]) Cost() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Held returns the cost of all entries of one machine.
func (s *Shares[K]) Held(m ID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.machines[m]; h != nil {
		return h.cost
	}
	return 0
}
