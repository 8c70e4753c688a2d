package verify

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Keys is a set of trusted public keys. It is safe for concurrent use.
type Keys struct {
	byName map[string]nix.PublicKey
}

// ParseKeys reads public keys in the form "name:base64". Nix keeps one key per name, so
// two different keys of one name are an error.
func ParseKeys(texts []string) (*Keys, error) {
	k := &Keys{byName: make(map[string]nix.PublicKey, len(texts))}
	for _, text := range texts {
		key, err := nix.ParsePublicKey(text)
		if err != nil {
			return nil, err
		}
		if old, ok := k.byName[key.Name]; ok && old != key {
			return nil, fmt.Errorf("two different keys are named %q", key.Name)
		}
		k.byName[key.Name] = key
	}
	return k, nil
}

// Names returns the names of the keys, sorted.
func (k *Keys) Names() []string {
	names := make([]string, 0, len(k.byName))
	for name := range k.byName {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Has reports whether a key of this name is trusted.
func (k *Keys) Has(name string) bool { _, ok := k.byName[name]; return ok }

// Open reads narinfo text as the answer to the question for want. It is the only maker
// of *Info. One valid signature of any trusted key suffices. Signatures by other keys, malformed
// ones and unsigned lines do not void it. An unsigned content-addressed path is refused: its
// claim could be checked only together with the NAR.
//
// Every refusal is an *InvalidError: the text is not the answer, whoever sent it.
func (k *Keys) Open(text []byte, want nix.StoreHash) (*Info, error) {
	n, err := nix.ParseNarInfo(text)
	if err != nil {
		return nil, &InvalidError{Reason: ReasonCorrupt, Err: err}
	}
	return k.OpenNarInfo(n, want)
}

// OpenNarInfo is Open for a narinfo that is already parsed, or that was put together from a
// row of the Nix database. It takes ownership of n.
func (k *Keys) OpenNarInfo(n *nix.NarInfo, want nix.StoreHash) (*Info, error) {
	if got := n.StorePath.Hash(); got != want {
		return nil, &InvalidError{Reason: ReasonWrongPath, Err: fmt.Errorf("asked for %s, got %s", want, n.StorePath)}
	}
	sigs, forged := k.valid(n)
	if len(sigs) == 0 {
		reason, why := ReasonUnsigned, errUnsigned
		if forged {
			reason, why = ReasonBadSignature, errBadSignature
		}
		return nil, &InvalidError{Reason: reason, Err: fmt.Errorf("%s: %w", n.StorePath, why)}
	}
	i := &Info{n: *n, signers: make([]string, len(sigs))}
	i.n.Sigs = sigs
	for j, sig := range sigs {
		i.signers[j] = sig.KeyName
	}
	if i.n.CA != "" {
		i.n.CA = nix.CheckCA(i.n.CA, i.n.StorePath, i.n.References)
	}
	if i.n.URL == "" {
		i.dropHints()
	}
	// Only what is kept is counted, so that whoever is offered this Info accepts it, too.
	if size := i.n.MaxTextLen(); size > nix.MaxNarInfo {
		return nil, &InvalidError{Reason: ReasonCorrupt, Err: fmt.Errorf("%s: up to %d bytes to pass on, at most %d", n.StorePath, size, nix.MaxNarInfo)}
	}
	return i, nil
}

// maxChecks bounds the public-key operations for one narinfo.
const maxChecks = 64

// valid returns the valid signatures of trusted keys, one of each key, sorted by key, and reports
// whether there was an invalid one under the name of a trusted key.
func (k *Keys) valid(n *nix.NarInfo) (sigs []nix.Signature, forged bool) {
	var fingerprint []byte
	checks := 0
	for _, sig := range n.Sigs {
		key, ok := k.byName[sig.KeyName]
		if !ok || slices.Contains(sigs, sig) {
			continue
		}
		if checks++; checks > maxChecks {
			break
		}
		if fingerprint == nil {
			fingerprint = n.Fingerprint()
		}
		if !key.Verify(fingerprint, sig) {
			forged = true
			continue
		}
		sig.KeyName = key.Name // not a part of the text
		sigs = append(sigs, sig)
	}
	// The result does not depend on the order of the lines.
	slices.SortFunc(sigs, func(a, b nix.Signature) int {
		return cmp.Or(strings.Compare(a.KeyName, b.KeyName), bytes.Compare(a.Data[:], b.Data[:]))
	})
	return slices.CompactFunc(sigs, func(a, b nix.Signature) bool { return a.KeyName == b.KeyName }), forged
}

var (
	errUnsigned     = errors.New("no signature by a trusted key")
	errBadSignature = errors.New("signature of a trusted key does not match")
)
