package resolve

// MemoryBytes returns the bytes of the answers in memory.
func (r *Resolver) MemoryBytes() int64 {
	r.flights.mu.Lock()
	defer r.flights.mu.Unlock()
	return r.memory.bytes
}
