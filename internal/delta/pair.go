package delta

// unit is a file of the target with the framing before it, and what it is coded against.
type unit struct {
	t, n int64 // where it lies in the target
	b, m int64 // the same of the base; m is 0 if there is no such file
}

func (u unit) tEnd() int64 { return u.t + u.n }
func (u unit) bEnd() int64 { return u.b + u.m }

// pairing is which files of two trees are taken for versions of each other.
type pairing struct {
	units []unit // in the order of the target; what lies between them is inserted
	spare []File // of the base, that no file of the target has to do with
}

// pair finds for each file of the target the file of the base with the same path, or else, of
// those with the same path but for its numbers, the one of the nearest size.
func pair(base, target Tree) pairing {
	var files []File
	byPath := map[string]int{}
	for f := range base.Files() {
		if len(files) == MaxFiles {
			break
		}
		byPath[f.Path] = len(files)
		files = append(files, f)
	}
	lead := make([]int64, len(files)) // framing before each file
	for i := range files {
		lead[i] = files[i].Off
		if i > 0 {
			lead[i] -= files[i-1].end()
		}
	}
	var like map[string][]int // made when it is needed
	var p pairing
	used := make([]bool, len(files))
	end, count := int64(0), 0
	for f := range target.Files() {
		if count++; count > MaxFiles {
			break
		}
		i, ok := byPath[f.Path]
		if !ok {
			if like == nil {
				like = byShape(files)
			}
			i, ok = nearest(files, like[shape(f.Path)], f.N)
		}
		u := unit{t: f.Off, n: f.N}
		if ok {
			used[i] = true
			same := min(f.Off-end, lead[i])
			u = unit{t: f.Off - same, n: f.N + same, b: files[i].Off - same, m: files[i].N + same}
		}
		p.units = append(p.units, u)
		end = f.end()
	}
	for i, f := range files {
		if !used[i] {
			p.spare = append(p.spare, f)
		}
	}
	return p
}

func byShape(files []File) map[string][]int {
	m := make(map[string][]int, len(files))
	for i, f := range files {
		s := shape(f.Path)
		m[s] = append(m[s], i)
	}
	return m
}

// nearest returns which of some files has the size nearest to n.
func nearest(files []File, among []int, n int64) (best int, ok bool) {
	for _, i := range among {
		if !ok || abs(files[i].N-n) < abs(files[best].N-n) {
			best, ok = i, true
		}
	}
	return best, ok
}

func abs(n int64) int64 { return max(n, -n) }

// shape returns a path with each number, and each run of 6 and more hexadecimal digits, replaced
// by "#": what stays when a version or a hash in it changes.
func shape(path string) string {
	out := make([]byte, 0, len(path))
	for i := 0; i < len(path); {
		hex := i
		for hex < len(path) && (isDigit(path[hex]) || path[hex] >= 'a' && path[hex] <= 'f') {
			hex++
		}
		dec := i
		for dec < len(path) && isDigit(path[dec]) {
			dec++
		}
		switch {
		case hex-i >= hexRun:
			out, i = append(out, '#'), hex
		case dec > i:
			out, i = append(out, '#'), dec
		default:
			out, i = append(out, path[i]), i+1
		}
	}
	return string(out)
}

const hexRun = 6

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
