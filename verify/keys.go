package verify

import (
	"errors"
	"fmt"
	"slices"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Keys is a set of trusted public keys. It is safe for concurrent use.
type Keys struct {
	byName map[string]nix.PublicKey
}

// ParseKeys reads public keys in the form "name:base64". Nix keeps one key a name, so
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

// Has tells whether a key of this name is trusted.
func (k *Keys) Has(name string) bool { _, ok := k.byName[name]; return ok }

// Open reads narinfo text as the answer to the question for want. It is the only maker
// of *Info. One valid signature of any trusted key suffices; signatures by other keys and
// junk beside it do not void it. An unsigned content-addressed path is refused: its claim
// could be checked only with the NAR at hand.
//
// Every refusal is a *InvalidError: the text is not the answer, whoever sent it.
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
	fingerprint := n.Fingerprint()
	var signers []string
	forged := false
	for _, sig := range n.Sigs {
		key, ok := k.byName[sig.KeyName]
		switch {
		case !ok:
		case key.Verify(fingerprint, sig):
			if !slices.Contains(signers, sig.KeyName) {
				signers = append(signers, sig.KeyName)
			}
		default:
			forged = true
		}
	}
	if len(signers) == 0 {
		reason, why := ReasonUnsigned, errUnsigned
		if forged {
			reason, why = ReasonBadSignature, errBadSignature
		}
		return nil, &InvalidError{Reason: reason, Err: fmt.Errorf("%s: %w", n.StorePath, why)}
	}
	return &Info{n: *n, signers: signers}, nil
}

var (
	errUnsigned     = errors.New("no signature by a trusted key")
	errBadSignature = errors.New("signature of a trusted key does not match")
)

// Info is a narinfo that a trusted key signed. Only Keys.Open makes one. It is immutable
// and safe for concurrent use.
type Info struct {
	n       nix.NarInfo
	signers []string
}

// StorePath returns the path, whose hash part is what was asked for.
func (i *Info) StorePath() nix.StorePath { return i.n.StorePath }

// NarHash returns the SHA-256 of the raw NAR.
func (i *Info) NarHash() nix.NarHash { return i.n.NarHash }

// NarSize returns the size of the raw NAR in bytes.
func (i *Info) NarSize() int64 { return i.n.NarSize }

// References returns the paths that this one refers to, sorted, perhaps with itself. The
// caller must not change it.
func (i *Info) References() []nix.StorePath { return i.n.References }

// Signers returns the names of the trusted keys whose signatures are valid, at least one.
// The caller must not change it.
func (i *Info) Signers() []string { return i.signers }

// SignedByAny tells whether one of the named keys is among the signers.
func (i *Info) SignedByAny(names []string) bool {
	return slices.ContainsFunc(i.signers, func(s string) bool { return slices.Contains(names, s) })
}

// Hints are the fields that no signature covers: where the text came from says what they
// are worth.
type Hints struct {
	URL         string
	Compression nix.Compression
	FileHash    nix.FileHash // zero when absent
	FileSize    int64        // 0 when absent
}

// Hints returns the unsigned fields as they stood in the text.
func (i *Info) Hints() Hints {
	return Hints{i.n.URL, i.n.Compression, i.n.FileHash, i.n.FileSize}
}

// FileForm returns the form of the upstream's file, and whether it is one that can be
// passed on as it is: xz or zstd with FileHash and FileSize.
func (i *Info) FileForm() (nix.Form, bool) {
	n := &i.n
	ok := (n.Compression == nix.XZ || n.Compression == nix.Zstd) && n.FileHash != (nix.FileHash{}) && n.FileSize > 0
	if !ok {
		return nix.Raw, false
	}
	return nix.Form{Compression: n.Compression, File: n.FileHash}, true
}

// Equal tells whether i and o say the same signed facts.
func (i *Info) Equal(o *Info) bool {
	return i.n.StorePath == o.n.StorePath && i.n.NarHash == o.n.NarHash && i.n.NarSize == o.n.NarSize &&
		slices.Equal(i.n.References, o.n.References)
}

// Text returns the narinfo with its hints as they came, for keeping on disk.
func (i *Info) Text() []byte { return i.n.AppendText(nil) }

// Offer returns the narinfo as this project offers it: with our URL for form, and the
// signed fields and signatures unchanged. A form other than raw must be the one of
// FileForm; any other is offered raw.
func (i *Info) Offer(form nix.Form) []byte {
	n := i.n
	if own, ok := i.FileForm(); !ok || form != own {
		form = nix.Raw
		n.Compression, n.FileHash, n.FileSize = nix.None, nix.FileHash(n.NarHash), n.NarSize
	}
	n.URL = nix.NARName{Store: n.StorePath.Hash(), Nar: n.NarHash, Form: form}.URL()
	return n.AppendText(make([]byte, 0, 1024))
}
