package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// allMethods in the order of the table.
var allMethods = []string{"xz -6", "zstd -3", "chunks", "zstd -3 --patch-from", "delta"}

// cost is what one method took for some NARs.
type cost struct {
	bytes               int64
	encode, decode      float64 // CPU seconds
	encodeRSS, applyRSS int64   // most of one process, in KiB
}

func (c *cost) add(d cost) {
	c.bytes += d.bytes
	c.encode += d.encode
	c.decode += d.decode
	c.encodeRSS, c.applyRSS = max(c.encodeRSS, d.encodeRSS), max(c.applyRSS, d.applyRSS)
}

// report has sums by class.
type report struct {
	methods []string
	classes []string
	raw     map[string]int64
	pairs   map[string]int
	sums    map[string]map[string]*cost // by class and method
	each    *rig.Table
}

func newReport(methods []string) *report {
	return &report{
		methods: methods, raw: map[string]int64{}, pairs: map[string]int{}, sums: map[string]map[string]*cost{},
		each: rig.NewTable(append([]string{"class", "package", "raw MB"}, methods...)...),
	}
}

// measure runs all methods on a pair of NARs.
func (r *report) measure(ctx context.Context, class, name, base, target string) error {
	fi, err := os.Stat(target)
	if err != nil {
		return err
	}
	if r.sums[class] == nil {
		r.classes = append(r.classes, class)
		r.sums[class] = map[string]*cost{}
	}
	r.raw[class] += fi.Size()
	r.pairs[class]++
	row := []any{class, name, fmt.Sprintf("%.1f", float64(fi.Size())/1e6)}
	for _, m := range r.methods {
		c, err := cached(filepath.Join(filepath.Dir(target), filepath.Base(target)+"."+strings.ReplaceAll(m, " ", "")), m != "delta", func() (cost, error) {
			return run1(ctx, m, base, target)
		})
		if err != nil {
			return fmt.Errorf("%s: %s: %w", name, m, err)
		}
		if r.sums[class][m] == nil {
			r.sums[class][m] = &cost{}
		}
		r.sums[class][m].add(c)
		row = append(row, fmt.Sprintf("%.2f %%", 100*float64(c.bytes)/float64(fi.Size())))
	}
	r.each.Row(row...)
	fmt.Fprintln(os.Stderr, row...)
	return nil
}

// cached keeps the result of a method that does not change.
func cached(file string, keep bool, f func() (cost, error)) (cost, error) {
	var v [5]float64
	if b, err := os.ReadFile(file); err == nil && keep && json.Unmarshal(b, &v) == nil {
		return cost{int64(v[0]), v[1], v[2], int64(v[3]), int64(v[4])}, nil
	}
	c, err := f()
	if err == nil && keep {
		b, err := json.Marshal([]float64{float64(c.bytes), c.encode, c.decode, float64(c.encodeRSS), float64(c.applyRSS)})
		if err != nil {
			return c, err
		}
		return c, os.WriteFile(file, b, 0o644)
	}
	return c, err
}

// run1 runs one method, both ways.
func run1(ctx context.Context, method, base, target string) (cost, error) {
	out := filepath.Join(filepath.Dir(target), "out.tmp")
	defer os.Remove(out)
	self, err := os.Executable()
	if err != nil {
		return cost{}, err
	}
	var encode, decode []string
	switch method {
	case "xz -6":
		encode, decode = []string{"xz", "-T1", "-6", "-c", "-k", target}, []string{"xz", "-T1", "-dc", out}
	case "zstd -3":
		encode, decode = []string{"zstd", "-q", "--single-thread", "-3", "-c", target}, []string{"zstd", "-q", "-dc", out}
	case "zstd -3 --patch-from":
		encode = []string{"zstd", "-q", "--single-thread", "-3", "--long=31", "--patch-from=" + base, "-c", target}
		decode = []string{"zstd", "-q", "-dc", "--long=31", "--patch-from=" + base, out}
	case "chunks":
		encode = []string{self, "-measure", "chunks", base, target}
	case "delta":
		encode, decode = []string{self, "-measure", "encode", base, target}, []string{self, "-measure", "decode", base, target, out}
	default:
		return cost{}, fmt.Errorf("unknown method %q", method)
	}
	f, err := os.Create(out)
	if err != nil {
		return cost{}, err
	}
	defer f.Close()
	var c cost
	if c.encode, c.encodeRSS, err = timed(ctx, f, encode); err != nil {
		return c, err
	}
	fi, err := f.Stat()
	if err != nil {
		return c, err
	}
	c.bytes = fi.Size()
	if decode == nil {
		return c, nil
	}
	c.decode, c.applyRSS, err = timed(ctx, nil, decode)
	return c, err
}

// timed runs a command and returns its CPU seconds and peak memory in KiB. time(1) stands
// between: the peak of a process is at least that of the one that started it.
func timed(ctx context.Context, stdout io.Writer, args []string) (cpu float64, rss int64, err error) {
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "/usr/bin/time", append([]string{"-f", "%U %S %M"}, args...)...)
	cmd.Stdout, cmd.Stderr = stdout, &errs
	if err := cmd.Run(); err != nil {
		return 0, 0, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	var user, system float64
	if _, err := fmt.Sscan(errs.String(), &user, &system, &rss); err != nil {
		return 0, 0, fmt.Errorf("%s: what it took: %w: %q", args[0], err, errs.String())
	}
	return user + system, rss, nil
}

// measureDelta is the process that is measured: "encode BASE TARGET" or "decode BASE TARGET DELTA".
func measureDelta(ctx context.Context, what string, args []string) error {
	base, baseSize, err := open(args[0])
	if err != nil {
		return err
	}
	target, size, err := open(args[1])
	if err != nil {
		return err
	}
	if what == "chunks" {
		return sendChunks(os.Stdout, base, target)
	}
	if what == "encode" {
		b, err := delta.Scan(base, baseSize)
		if err != nil {
			return err
		}
		t, err := delta.Scan(target, size)
		if err != nil {
			return err
		}
		_, err = delta.Encode(ctx, os.Stdout, b, t)
		return err
	}
	in, _, err := open(args[2])
	if err != nil {
		return err
	}
	got, want := sha256.New(), sha256.New()
	if _, err := io.Copy(got, delta.NewReader(in, base, baseSize, size)); err != nil {
		return err
	}
	if os.Getenv("DELTA_CHECK") == "" {
		return nil
	}
	if _, err := io.Copy(want, target); err != nil {
		return err
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return errors.New("decoded to something else")
	}
	return nil
}

func open(file string) (*os.File, int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// String returns the tables in Markdown.
func (r *report) String() string {
	heads := []string{"class", "pairs", "raw MB"}
	t := rig.NewTable(append(heads, r.methods...)...)
	slices.Sort(r.classes)
	for _, class := range r.classes {
		row := []any{class, r.pairs[class], fmt.Sprintf("%.0f", float64(r.raw[class])/1e6)}
		xz := r.sums[class]["xz -6"]
		for _, m := range r.methods {
			c := r.sums[class][m]
			cell := fmt.Sprintf("%.2f %%", 100*float64(c.bytes)/float64(r.raw[class]))
			if xz != nil {
				cell += fmt.Sprintf(" / %.2f %%", 100*float64(c.bytes)/float64(xz.bytes))
			}
			gb := float64(r.raw[class]) / 1e9
			cell += fmt.Sprintf("; %.1f, %.1f s/GB; %d, %d MiB", c.encode/gb, c.decode/gb, c.encodeRSS>>10, c.applyRSS>>10)
			row = append(row, cell)
		}
		t.Row(row...)
	}
	return "Bytes as % of the raw NAR / of xz; CPU seconds per GB to encode, to decode; most memory to encode, to decode.\n\n" +
		t.String() + "\n" + r.each.String()
}
