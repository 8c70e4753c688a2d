package admin

import "strings"

// State says how far the newest generation of a list is.
func (f Followed) State() string {
	switch {
	case len(f.Generations) == 0:
		return "not read yet"
	case f.MissingPaths > 0:
		return plural(int64(f.MissingPaths), "path") + " to fetch (" + FormatBytes(f.MissingBytes) + ")"
	case f.Generations[0].Complete && f.LeftOutPaths+f.Absent > 0:
		return "all here but " + plural(int64(f.LeftOutPaths+f.Absent), "path")
	case f.Generations[0].Complete:
		return "all here"
	}
	return "looking up what it needs"
}

// Problems says what of the list is not here, and why.
func (f Followed) Problems() (list []string) {
	if f.LeftOutPaths > 0 {
		list = append(list, "no room in the cache for "+plural(int64(f.LeftOutPaths), "path")+" ("+FormatBytes(f.LeftOutBytes)+")")
	}
	if f.Absent > 0 {
		list = append(list, "no source has "+plural(int64(f.Absent), "path"))
	}
	if f.Error != "" {
		list = append(list, f.Error)
	}
	return list
}

// String says what was copied, and what holds up the rest.
func (r Replicated) String() string {
	text := "copied " + plural(int64(r.Copied), "path") + " (" + FormatBytes(r.CopiedBytes) + ") from " + plural(int64(r.Peers), "peer")
	if r.MissingPaths > 0 {
		text += ", " + plural(int64(r.MissingPaths), "path") + " to copy (" + FormatBytes(r.MissingBytes) + ")"
	}
	if r.Full {
		text += "; the cache is full: only what is new and nobody else has is copied"
	}
	return text
}

// String describes a generation: its size, and how much of it is pinned.
func (g Generation) String() string {
	return plural(int64(g.Paths), "path") + ", " + FormatBytes(g.Bytes) + ", " + formatCount(g.Kept) + " kept"
}

// String says what went to and came from the bucket, and what is wrong with it.
func (w Written) String() string {
	parts := []string{"read " + FormatBytes(w.Read), "written " + FormatBytes(w.Sent)}
	if w.Waiting > 0 {
		parts = append(parts, plural(int64(w.Waiting), "path")+" to write")
	}
	if w.LastError != "" {
		parts = append(parts, w.LastError)
	}
	return strings.Join(parts, ", ")
}
