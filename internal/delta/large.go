package delta

import "context"

// large codes a file that does not fit into the windows together with its base.
func (e *encoder) large(ctx context.Context, u unit) error {
	if err := e.insertTo(ctx, u.t); err != nil {
		return err
	}
	var v *voters
	e.gain.again()
	for shift := int64(0); e.at < u.tEnd(); {
		end := min(e.at+targetWindow, u.tEnd())
		t, err := read(&e.t, e.target, e.at, end)
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		w := window(u, e.at, end, shift)
		b, err := read(&e.b, e.base, w.from, w.to)
		if err != nil {
			return &BaseError{err}
		}
		if !e.aligned(t, b, u.b+e.at-u.t+shift-w.from, w.from) {
			if v == nil && !e.gain.skipsAll(len(t)) {
				if v, err = e.voters(ctx, u); err != nil {
					return err
				}
				b = nil // the buffer was used
			}
			if v != nil {
				shift = v.moved(t, e.at-u.t)
			}
			if near := window(u, e.at, end, shift); b == nil || near != w {
				w = near
				if b, err = read(&e.b, e.base, w.from, w.to); err != nil {
					return &BaseError{err}
				}
			}
			start := clamp(u.b+e.at-u.t+shift-w.from, 0, int64(len(b)))
			next := int64(e.matched(e.matcher(b, w.from), t, int(start)))
			shift = w.from + next - u.b - (end - u.t)
		}
		e.at = end
	}
	return e.w.err
}

// extent is a range of the base.
type extent struct{ from, to int64 }

// window returns the part of the base file that is looked at for the bytes from at to end of the
// target, if they have moved by shift.
func window(u unit, at, end, shift int64) extent {
	size := min(u.m, baseWindow)
	middle := u.b + (at+end)/2 - u.t + shift
	from := clamp(middle-size/2, u.b, u.bEnd()-size)
	return extent{from, from + size}
}

func clamp(n, least, most int64) int64 { return max(least, min(n, most)) }

// voters reads all of the base file.
func (e *encoder) voters(ctx context.Context, u unit) (*voters, error) {
	v := newVoters(u.m)
	for off := int64(0); off < u.m; off += baseWindow / 2 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := read(&e.b, e.base, u.b+off, u.b+min(off+baseWindow/2, u.m))
		if err != nil {
			return nil, &BaseError{err}
		}
		v.add(b, off)
	}
	return v, nil
}
