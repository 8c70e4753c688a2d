package archtest

// module is the path in go.mod.
const module = "github.com/nixp2p/nixp2p"

// Floors of rooms that are no part of the program.
const (
	floorTest = -1 // fixtures and suites: only tests and lab import them
	floorLab  = -2 // commands for measuring: nobody imports them
)

// room is what a package may do.
type room struct {
	floor int
	// may are the packages of ours that it imports, beside its own tests' fixtures.
	may []string
}

// rooms has every package of this module. A package that is missing here fails the test:
// whoever adds one says where it stands.
var rooms = map[string]room{
	"internal/nix":      {0, nil},
	"internal/metrics":  {0, nil},
	"internal/compress": {0, []string{"internal/nix"}},
	"internal/nixconf":  {0, nil},
	"internal/disk":     {0, nil},

	"verify":          {1, []string{"internal/nix"}},
	"internal/ledger": {1, []string{"internal/disk"}},

	"localstore":         {2, proof},
	"internal/upstream":  {2, proof},
	"internal/infocache": {2, proof},
	"internal/narcache":  {2, proof},

	// The peers' room and its parts, of which all but dht, mdns and discovery are pure logic.
	"p2p": {2, with(proof, "p2p/inventory", "p2p/wire", "p2p/pick", "p2p/quota", "p2p/standing", "p2p/swarmkey",
		"p2p/netif", "p2p/discovery", "p2p/mdns", "p2p/dht", "p2p/lease", "p2p/leasing")},
	"p2p/dht":       {2, proof},
	"p2p/inventory": {2, proof},
	"p2p/wire":      {2, with(proof, "p2p/inventory")},
	"p2p/pick":      {2, proof},
	"p2p/quota":     {2, proof},
	"p2p/standing":  {2, proof},
	"p2p/swarmkey":  {2, proof},
	"p2p/lease":     {2, proof},
	"p2p/leasing":   {2, with(proof, "p2p/lease")},
	"p2p/netif":     {2, proof},
	"p2p/discovery": {2, with(proof, "p2p/netif")},
	"p2p/mdns":      {2, with(proof, "p2p/netif", "p2p/discovery")},

	"internal/resolve": {3, proof},

	// The front takes the resolver's answers as they are; both stay apart from the sources.
	"httpfront":      {4, with(proof, "internal/resolve")},
	"internal/admin": {4, proof},

	"internal/config": {5, []string{"internal/nix", "verify"}},
	"internal/manual": {5, nil},
	"internal/doctor": {5, with(proof, "internal/admin", "internal/nixconf", "localstore", "p2p/netif")},
	"internal/demo":   {5, with(proof, "internal/admin", "internal/nixconf")},
	"cmd/nixp2p": {6, with(proof, "internal/ledger", "localstore", "internal/upstream", "internal/infocache", "internal/narcache", "p2p",
		"internal/resolve", "httpfront", "internal/admin", "internal/config", "internal/manual", "internal/doctor", "internal/demo", "internal/nixconf")},

	"internal/nixtest":            {floorTest, proof},
	"internal/nixtest/realnix":    {floorTest, with(proof, "internal/nixtest")},
	"internal/nixtest/supervise":  {floorTest, nil},
	"internal/resolve/sourcetest": {floorTest, with(proof, "internal/resolve", "internal/nixtest")},
	"internal/archtest":           {floorTest, []string{"internal/config", "internal/metrics"}},

	// Tests of files that are not Go.
	"systemd": {floorTest, []string{"internal/config"}},
	"nix":     {floorTest, []string{"internal/config"}},
	"deploy":  {floorTest, []string{"internal/metrics"}},

	"lab/mkcorpus": {floorLab, with(proof, "internal/nixtest", "internal/nixtest/realnix")},
	"lab/bench":    {floorLab, with(proof, "internal/nixtest", "internal/nixtest/realnix", "lab/rig")},
	"lab/faults":   {floorLab, with(proof, "internal/nixtest", "internal/nixtest/realnix", "internal/nixtest/supervise", "lab/faults/liar", "p2p/wire")},
	// What the labs of several hosts have in common.
	"lab/rig":  {floorLab, with(proof, "internal/nixtest", "internal/nixtest/realnix")},
	"lab/site": {floorLab, with(proof, "internal/nixtest", "internal/nixtest/realnix", "lab/rig", "lab/site/stranger", "p2p/wire")},
	"lab/cold": {floorLab, with(proof, "internal/nixtest", "internal/nixtest/realnix", "lab/rig", "lab/site/stranger")},
	// A peer that does not keep to the rules has to speak their language.
	"lab/faults/liar":    {floorLab, with(proof, "p2p/inventory", "p2p/swarmkey", "p2p/wire")},
	"lab/site/stranger":  {floorLab, with(proof, "p2p/dht", "p2p/inventory", "p2p/swarmkey", "p2p/wire")},
	"lab/netlab/wanlink": {floorLab, nil},
}

// proof is what everything from floor 2 up speaks: the words, what was proven, the
// containers and the counters.
var proof = []string{"internal/nix", "internal/metrics", "internal/compress", "internal/disk", "verify"}

func with(base []string, more ...string) []string {
	return append(append([]string(nil), base...), more...)
}

// fences says which packages import a dependency; the longest matching prefix counts. A
// dependency that is missing here fails the test. Tests may import any of them, and
// testOnly beside.
var fences = map[string][]string{
	"golang.org/x/": {"*"},

	// Decoders: one room knows the containers.
	"github.com/klauspost/compress": {"internal/compress"},
	"github.com/mikelolasagasti/xz": {"internal/compress"},
	"github.com/andybalholm/brotli": {"internal/compress"},

	// Anybody may hold a counter; one room names the metrics, one serves them.
	"github.com/prometheus/client_golang/prometheus":            {"*"},
	"github.com/prometheus/client_golang/prometheus/collectors": {"internal/metrics"},
	"github.com/prometheus/client_golang/prometheus/promhttp":   {"internal/admin"},
	"github.com/prometheus/client_model":                        {"internal/metrics"}, // to read a counter

	"github.com/hashicorp/golang-lru/v2": {"internal/resolve", "internal/upstream", "internal/narcache", "internal/infocache"},
	"go.etcd.io/bbolt":                   {"internal/infocache", "internal/narcache"},

	"github.com/FastFilter/xorfilter": {"p2p/inventory"},

	// The network of peers, in the only two rooms that are more than logic about it.
	"github.com/libp2p/":      {"p2p", "p2p/dht", "lab/site/stranger", "lab/faults/liar"},
	"github.com/multiformats": {"p2p", "p2p/dht", "lab/site/stranger"},
	"github.com/ipfs":         {"p2p/dht"},

	// The database of Nix is read in one place, and what Nix remembers of caches in another.
	"modernc.org/sqlite": {"localstore", "internal/doctor"},

	"github.com/BurntSushi/toml":   {"internal/config"},
	"github.com/spf13/pflag":       {"internal/config", "internal/manual", "cmd/nixp2p"},
	"github.com/spf13/cobra":       {"internal/manual", "cmd/nixp2p"},
	"github.com/coreos/go-systemd": {"cmd/nixp2p"},
	"github.com/mattn/go-isatty":   {"cmd/nixp2p"},
}

var testOnly = []string{"go.uber.org/goleak", "github.com/rogpeppe/go-internal"}

// Budgets. They keep a reader's page a page; they are what well-kept code bases reach.
const (
	maxFuncLines = 100
	p90FuncLines = 45
	maxFileLines = 500
	maxFiles     = 12 // non-test files in a package
)
