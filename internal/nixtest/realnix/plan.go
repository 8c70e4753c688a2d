package realnix

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
)

// kind is what a path of the corpus has in it.
type kind int

const (
	kindTree   kind = iota // a directory with files
	kindFile               // a single file, not executable
	kindScript             // a single file, executable
	kindLink               // a symbolic link to the path it refers to
	kindEdges              // a directory with what is easily got wrong in a NAR
)

// node is one path of the corpus, before Nix has given it a name.
type node struct {
	name   string
	kind   kind
	size   int64  // bytes of file contents to aim at
	stream uint64 // of the random numbers for the contents; equal = same contents
	refs   []int  // lower nodes, sorted
	self   bool   // refers to itself
	exact  bool   // no file of the machine is taken twice, so that the size is reached
}

// Where the special paths of a corpus of small files are.
const (
	hubNode    = 0 // most others refer to it, as to a C library
	twinNode   = 2 // the same contents as the one before it
	edgesNode  = 3
	scriptNode = 4
	mediumNode = 5 // the first of mediumNodes
	largeNode  = 11
	linkNode   = 12

	mediumNodes = 6
	largeSize   = 70 << 20 // more than is verified ahead of the first byte (64 MiB)
)

// levels bounds the longest chain of references below the top.
const levels = 7

// planCorpus decides names, sizes and references. The last node is the top.
func planCorpus(p Params) []node {
	r := rand.New(rand.NewPCG(p.Seed, 1))
	plan := make([]node, p.Paths)
	for i := range plan {
		plan[i] = node{
			name:   fmt.Sprintf("%s-%d.%d", word(r)+word(r), r.IntN(9), r.IntN(30)),
			size:   200 + r.Int64N(4000),
			stream: uint64(100 + i),
		}
		if i%9 == 8 {
			plan[i].kind = kindFile
		}
	}
	if p.Bytes > 0 {
		planSizes(r, plan, p.Bytes, p.Largest)
	} else {
		planSpecial(plan)
	}
	planReferences(r, plan, p.Bytes == 0)
	return plan
}

func planSpecial(plan []node) {
	plan[twinNode-1].kind = kindTree
	plan[twinNode].kind = kindTree
	plan[twinNode].name = plan[twinNode-1].name // it is in the contents
	plan[twinNode].size = plan[twinNode-1].size
	plan[twinNode].stream = plan[twinNode-1].stream
	plan[edgesNode].kind = kindEdges
	plan[scriptNode].kind = kindScript
	for i := range mediumNodes {
		plan[mediumNode+i].kind = kindTree
		plan[mediumNode+i].size = 1<<20 + int64(i)*600<<10 + 1234
	}
	plan[largeNode].kind = kindFile
	plan[largeNode].size = largeSize
	plan[linkNode].kind = kindLink
}

// planSizes draws sizes with the spread of a real closure (a mean of eight
// times the median) and scales them to the total. The largest is as large as is asked for, and
// the others share the rest.
func planSizes(r *rand.Rand, plan []node, total, largest int64) {
	const sigma = 2.04
	draw := make([]float64, len(plan))
	sum := 0.0
	for i := range draw {
		draw[i] = math.Exp(sigma * r.NormFloat64())
		sum += draw[i]
	}
	most := slices.Index(draw, slices.Max(draw))
	if largest > 0 {
		sum -= draw[most]
		total -= largest
	}
	for i := range plan {
		plan[i].kind = kindTree
		plan[i].size = int64(draw[i] / sum * float64(total))
	}
	if largest > 0 {
		plan[most].size, plan[most].exact = largest, true
	}
}

// planReferences lets every path refer to some of lower levels, with a liking
// for the first ones, and the top to all that nobody else refers to.
func planReferences(r *rand.Rand, plan []node, special bool) {
	top := len(plan) - 1
	referred := make([]bool, len(plan))
	refer := func(from, to int) {
		if !slices.Contains(plan[from].refs, to) {
			plan[from].refs = append(plan[from].refs, to)
			referred[to] = true
		}
	}
	for i := 1; i < top; i++ {
		switch {
		case special && (i == twinNode || i == twinNode-1):
			continue // a reference of one would be a difference to the other
		case special && i == linkNode:
			refer(i, hubNode)
			continue
		}
		if r.Float64() < 0.75 {
			refer(i, hubNode)
		}
		plan[i].self = r.IntN(5) == 0
		below := i * levels / top * top / levels // first node of this level
		for below > 0 && r.Float64() < 0.78 {
			refer(i, int(math.Pow(r.Float64(), 1.3)*float64(below)))
		}
	}
	for i := range top {
		if !referred[i] {
			refer(top, i)
		}
	}
	for i := range plan {
		slices.Sort(plan[i].refs)
	}
}

// builder makes every output of a derivation from its part of the contents and
// the store paths that it is to refer to.
const builder = `for o in $outputs; do
	eval "dst=\$$o src=/corpus/\$src_$o refs=\$refs_$o"
	[ -e "$src" ] || { ln -s $refs "$dst"; continue; }
	cp -RP "$src" "$dst"
	if [ -z "$refs" ]; then :
	elif [ -d "$dst" ]; then mkdir -p "$dst/nix-support"; printf '%s\n' $refs >"$dst/nix-support/references"
	else printf '# %s\n' $refs >>"$dst"
	fi
done`

// expression returns the Nix expression that builds the plan, group nodes to a
// derivation. The contents are not inputs in Nix's eyes, so the parameters are.
func expression(p Params, plan []node, group int) string {
	outputs := []string{"out", "dev", "lib", "bin", "doc", "man", "data", "info", "debug", "static", "include", "tools", "python", "modules", "firmware", "locale", "examples", "headers", "plugins", "terminfo"}
	top := len(plan) - 1
	place := func(i int) (drv int, output string) {
		if i == top { // alone, so that nix-build prints nothing else
			return (top + group - 1) / group, outputs[0]
		}
		return i / group, outputs[i%group]
	}
	refs := func(i int) string {
		drv, output := place(i)
		var parts []string
		for _, to := range plan[i].refs {
			if d, o := place(to); d == drv {
				parts = append(parts, fmt.Sprintf("${placeholder %q}", o))
			} else {
				parts = append(parts, fmt.Sprintf("${d%d.%s}", d, o))
			}
		}
		if plan[i].self {
			parts = append(parts, fmt.Sprintf("${placeholder %q}", output))
		}
		return strings.Join(parts, " ")
	}

	var b strings.Builder
	fmt.Fprintf(&b, "let\n  drv = attrs: derivation (attrs // {\n    system = builtins.currentSystem;\n    builder = \"/bin/sh\";\n"+
		"    args = [ \"-euc\" ''\n%s\n'' ];\n    PATH = \"/bin:/usr/bin\";\n    corpus = %q;\n  });\n", builder, p.key())
	for i := 0; i < len(plan); {
		drv, _ := place(i)
		fmt.Fprintf(&b, "  d%d = drv {\n    name = %q;\n", drv, plan[i].name)
		var names []string
		for ; i < len(plan); i++ {
			d, output := place(i)
			if d != drv {
				break
			}
			names = append(names, fmt.Sprintf("%q", output))
			fmt.Fprintf(&b, "    src_%s = \"%s\";\n    refs_%s = \"%s\";\n", output, stagingName(i), output, refs(i))
		}
		fmt.Fprintf(&b, "    outputs = [ %s ];\n  };\n", strings.Join(names, " "))
	}
	drv, _ := place(top)
	fmt.Fprintf(&b, "in d%d\n", drv)
	return b.String()
}

// stagingName names the contents of node i.
func stagingName(i int) string { return fmt.Sprintf("%05d", i) }
