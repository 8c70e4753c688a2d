package p2p

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/nixp2p/nixp2p/internal/atomicfile"
	"github.com/nixp2p/nixp2p/internal/source"
)

// identity is the private key by which peers know this node, and its file. The key is worth
// nothing that would be lost: where the file cannot be read or written, the node works with one that
// lasts until its end. Load is called before all others.
type identity struct {
	path    string // "": there is no file
	machine string // a hash that is another one on each machine; "" if unknown
	key     crypto.PrivKey

	mu sync.Mutex // held by who writes

	log        *slog.Logger
	conditions *source.Conditions
}

const (
	// machineID is where Linux says which machine this is.
	machineID = "/etc/machine-id"
	// machineSuffix names the file beside the key that says on which machine it was made: a key
	// that was copied with an image is not used.
	machineSuffix = ".machine"
	damagedSuffix = ".damaged"
	// keepAgain is how often it is tried to write a key that could not be written.
	keepAgain = 30 * time.Second
)

// thisMachine reads a machine ID and returns a hash of it, "" if there is none.
func thisMachine(path string) string {
	id, err := os.ReadFile(path)
	if text := strings.TrimSpace(string(id)); err == nil && text != "" && text != "uninitialized" {
		sum := sha256.Sum256([]byte("nixp2p identity " + text))
		return hex.EncodeToString(sum[:])
	}
	return ""
}

// load reads the key, or makes one if there is none that can be used here.
func (i *identity) load() error {
	if i.path == "" {
		return i.renew()
	}
	data, err := os.ReadFile(i.path)
	if err == nil {
		i.key, err = crypto.UnmarshalPrivateKey(data)
		if err == nil && !i.fromElsewhere() {
			i.keep()
			return nil
		}
		if err != nil {
			i.log.Warn("the identity is damaged; it is kept under another name and a new one is made", "file", i.path+damagedSuffix, "err", err)
			_ = os.Rename(i.path, i.path+damagedSuffix) // else it is replaced
		}
		return i.renew()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		i.lasting(err)
		return i.generate()
	}
	return i.renew()
}

// fromElsewhere reports whether the key was made on another machine.
func (i *identity) fromElsewhere() bool {
	made, err := os.ReadFile(i.path + machineSuffix)
	if err != nil || i.machine == "" || string(made) == i.machine {
		return false
	}
	i.conditions.ReportFor(i.log, "identity-copied", source.Condition{
		Part: source.PartIdentity, Note: true,
		Text: "the identity in " + i.path + " was made on another machine: state was cloned; this node has taken a new identity",
		Hint: "leave the state directory out of images: docs/ci.md",
	}, copiedFor)
	return true
}

// renew makes a new key in place of the present one.
func (i *identity) renew() error {
	if err := i.generate(); err != nil {
		return err
	}
	i.keep()
	return nil
}

func (i *identity) generate() (err error) {
	if i.key, _, err = crypto.GenerateEd25519Key(rand.Reader); err != nil {
		return fmt.Errorf("p2p: identity: %w", err)
	}
	return nil
}

// keep writes the key, unless its file is there already.
func (i *identity) keep() {
	if i.path == "" {
		return
	}
	data, err := crypto.MarshalPrivateKey(i.key)
	if err == nil {
		if was, rerr := os.ReadFile(i.path); rerr != nil || string(was) != string(data) {
			err = atomicfile.Replace(i.path, data)
		}
	}
	if err == nil && i.machine != "" {
		if was, rerr := os.ReadFile(i.path + machineSuffix); rerr != nil || string(was) != i.machine {
			err = atomicfile.Replace(i.path+machineSuffix, []byte(i.machine))
		}
	}
	i.lasting(err)
}

// lasting notes whether the key outlives this process.
func (i *identity) lasting(err error) {
	const key = "identity"
	if err == nil {
		i.conditions.Over(i.log, key)
		return
	}
	i.conditions.Report(i.log, key, source.Condition{
		Part: source.PartIdentity,
		Text: fmt.Sprintf("the identity cannot be kept in %s: %v; after a restart this node is another one to its peers", i.path, err),
		Hint: "make the state directory writable for the service; it is tried again",
	})
}

// run sees to it that the file stays, until ctx ends.
func (i *identity) run(ctx context.Context) {
	if i.path == "" {
		return
	}
	tick := time.NewTicker(keepAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			i.mu.Lock()
			i.keep()
			i.mu.Unlock()
		}
	}
}
