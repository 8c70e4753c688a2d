package delta

import "sort"

// spares are files of the base that have no version in the target. New files are looked for among
// them: they may have been renamed.
type spares struct {
	b     []byte
	x     index
	files []File  // that are in b
	start []int64 // of each in b
}

// readSpares reads files of the base, up to spareWindow bytes.
func readSpares(base Tree, files []File) (*spares, error) {
	s := &spares{}
	size := int64(0)
	for _, f := range files {
		if f.N >= leastSpare && size+f.N <= spareWindow {
			s.files, s.start = append(s.files, f), append(s.start, size)
			size += f.N
		}
	}
	s.b = make([]byte, size)
	for i, f := range s.files {
		buf := s.b[s.start[i]:][:f.N:f.N]
		if _, err := read(&buf, base, f.Off, f.end()); err != nil {
			return nil, &BaseError{err}
		}
	}
	return s, nil
}

// place returns where b[i] lies in the base, and how much of the same file follows.
func (s *spares) place(i int) (pos int64, n int) {
	k := sort.Search(len(s.start), func(k int) bool { return s.start[k] > int64(i) }) - 1
	in := int64(i) - s.start[k]
	return s.files[k].Off + in, int(s.files[k].N - in)
}
