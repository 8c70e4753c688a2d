package archtest

// module is the path in go.mod.
const module = "github.com/nixp2p/nixp2p"

// Floors of packages that are not part of the program.
const (
	floorTest = -1 // fixtures and suites: only tests and lab import them
	floorLab  = -2 // commands for measuring: no package imports them
)

// room is the place of a package. A package imports packages of lower floors, with two rules more:
//
//   - On one floor, packages do not know each other, except parts of one family (p2p and its
//     parts) with a lower rank, and the packages of floor 0, which do no I/O.
//   - Floors 3 and 4 import a package of floor 2 only if also names it: sources meet the resolver
//     in cmd/nixp2p.
type room struct {
	floor int
	rank  int // within the family
	also  []string
}

// rooms has every package of this module. A package that is missing here fails the test.
var rooms = map[string]room{
	"internal/nix":        {},
	"internal/metrics":    {},
	"internal/compress":   {},
	"internal/delta":      {},
	"internal/backoff":    {},
	"internal/hedge":      {},
	"internal/taskgroup":  {},
	"internal/runclock":   {},
	"internal/httprange":  {},
	"internal/atomicfile": {},
	"internal/nixconf":    {},
	"internal/origin":     {},

	"verify":          {floor: 1, rank: 0},
	"internal/source": {floor: 1, also: []string{"verify"}},
	"internal/update": {floor: 1, also: []string{"verify", "internal/source"}},

	"localstore":         {floor: 2},
	"internal/upstream":  {floor: 2},
	"internal/state":     {floor: 2},
	"internal/narcache":  {floor: 2},
	"internal/history":   {floor: 2},
	"internal/cloudzone": {floor: 2},
	"internal/bucket":    {floor: 2},

	"p2p":            {floor: 2, rank: 6},
	"p2p/client":     {floor: 2, rank: 5},
	"p2p/server":     {floor: 2, rank: 5},
	"p2p/share":      {floor: 2, rank: 4},
	"p2p/site":       {floor: 2, rank: 4},
	"p2p/dht":        {floor: 2, rank: 3},
	"p2p/lease":      {floor: 2, rank: 3},
	"p2p/mdns":       {floor: 2, rank: 3},
	"p2p/discovery":  {floor: 2, rank: 2},
	"p2p/wire":       {floor: 2, rank: 2},
	"p2p/balance":    {floor: 2, rank: 1},
	"p2p/inventory":  {floor: 2, rank: 1},
	"p2p/machine":    {floor: 2, rank: 1},
	"p2p/netif":      {floor: 2, rank: 1},
	"p2p/reputation": {floor: 2, rank: 1},
	"p2p/swarmkey":   {floor: 2, rank: 1},

	"internal/resolve":  {floor: 3},
	"internal/transfer": {floor: 3, also: []string{"internal/resolve", "internal/narcache"}},
	"internal/mirror":   {floor: 3},

	"httpfront":      {floor: 4, also: []string{"p2p/machine"}},
	"internal/admin": {floor: 4},

	"internal/config": {floor: 5},
	"internal/doctor": {floor: 5},
	"internal/demo":   {floor: 5},
	"cmd/nixp2p":      {floor: 6},

	"internal/nixtest":             {floor: floorTest},
	"internal/nixtest/browser":     {floor: floorTest},
	"internal/nixtest/realnix":     {floor: floorTest},
	"internal/nixtest/supervise":   {floor: floorTest},
	"internal/nixtest/objectstore": {floor: floorTest},
	"internal/source/sourcetest":   {floor: floorTest},
	"internal/archtest":            {floor: floorTest},

	// Tests of files that are not Go.
	"systemd": {floor: floorTest},
	"nix":     {floor: floorTest},
	"deploy":  {floor: floorTest},

	"lab/mkcorpus":       {floor: floorLab},
	"lab/bench":          {floor: floorLab},
	"lab/faults":         {floor: floorLab},
	"lab/rig":            {floor: floorLab},
	"lab/site":           {floor: floorLab},
	"lab/cold":           {floor: floorLab},
	"lab/delta":          {floor: floorLab},
	"lab/boot":           {floor: floorLab},
	"lab/hostile":        {floor: floorLab},
	"lab/netlab/wanlink": {floor: floorLab},
}

// fences says which packages import a dependency; the longest matching prefix counts. A dependency
// that is missing here fails the test, and so does a fence around one that is not in go.mod.
// Tests may import any of them, and also testOnly.
var fences = map[string][]string{
	"golang.org/x/": {"*"},

	"github.com/klauspost/compress": {"internal/compress"},
	"github.com/mikelolasagasti/xz": {"internal/compress"},
	"github.com/andybalholm/brotli": {"internal/compress"},
	"github.com/pierrec/lz4/v4":     {"internal/compress"},
	"github.com/ulikunitz/xz":       {"internal/compress"},

	"github.com/prometheus/client_golang/prometheus":            {"*"},
	"github.com/prometheus/client_golang/prometheus/collectors": {"internal/metrics"},
	"github.com/prometheus/client_golang/prometheus/promhttp":   {"internal/admin"},
	"github.com/prometheus/client_model":                        {"internal/metrics"}, // to read a counter

	"github.com/hashicorp/golang-lru/v2": {"internal/backoff", "internal/resolve", "internal/transfer", "internal/upstream", "internal/narcache", "internal/state", "localstore", "p2p/client"},
	"go.etcd.io/bbolt":                   {"internal/state"},
	"modernc.org/sqlite":                 {"localstore", "internal/doctor"},
	"github.com/minio/minio-go":          {"internal/bucket"},

	"github.com/FastFilter/xorfilter": {"p2p/inventory"},

	// Two packages drive libp2p; the others use its vocabulary.
	"github.com/libp2p/go-libp2p":         {"p2p/site", "p2p/dht"},
	"github.com/libp2p/go-libp2p/core":    {"p2p", "p2p/site", "p2p/dht", "p2p/client", "p2p/server", "p2p/lease", "p2p/machine", "p2p/discovery", "p2p/share"},
	"github.com/libp2p/go-libp2p/x/rate":  {"p2p/site"},
	"github.com/libp2p/go-libp2p-kad-dht": {"p2p/dht"},
	"github.com/multiformats":             {"p2p", "p2p/site", "p2p/dht", "p2p/machine", "p2p/discovery", "p2p/client", "p2p/server"},
	"github.com/ipfs":                     {"p2p/dht"},

	"github.com/BurntSushi/toml":   {"internal/config"},
	"github.com/spf13/pflag":       {"internal/config", "cmd/nixp2p"},
	"github.com/spf13/cobra":       {"cmd/nixp2p"},
	"github.com/coreos/go-systemd": {"cmd/nixp2p"},
}

var testOnly = []string{"go.uber.org/goleak", "github.com/rogpeppe/go-internal", "github.com/chromedp/"}

// excluded are packages that must not be linked into the program: transports that it does not
// speak, and the one package of libp2p that links them all.
var excluded = []string{"github.com/quic-go/", "github.com/pion/", "github.com/gorilla/websocket", "github.com/chromedp/"}

const excludedExactly = "github.com/libp2p/go-libp2p"

// Budgets. Data is exempt from maxFields: types without methods, types named Config, and the tables
// named below.
const (
	maxFuncLines = 100
	p90FuncLines = 45
	maxFileLines = 500
	maxMethods   = 30
	maxFields    = 15
)

var tables = []string{"internal/metrics.Metrics", "internal/config.Config"}

// realClock are the files whose tests may wait on the real clock: those that talk to real
// processes, to the kernel, or to libp2p's own timers.
var realClock = []string{
	"cmd/nixp2p/", "internal/nixtest/", "lab/", "systemd/", "nix/", "deploy/",
	"p2p/help_test.go", "p2p/dht/dht_test.go",
	// A real S3 server.
	"internal/bucket/bucket_test.go",
	// Real HTTP servers that stop and start, and a real resolver.
	"internal/upstream/delta_test.go", "internal/upstream/main_test.go", "internal/upstream/nar_test.go", "internal/upstream/names_test.go",
	// They wait for nothing, but decode zstd, whose decoders are kept and must not be of a bubble.
	"p2p/client/delta_test.go", "p2p/client/zstd_test.go",
	// All of it runs in bubbles that a helper makes.
	"p2p/lease/client_test.go",
}
