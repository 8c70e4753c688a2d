package swarmkey

import (
	"bytes"
	"strings"
	"testing"
)

func keysOf(t *testing.T, lines ...string) Keys {
	t.Helper()
	k, err := Parse([]byte("# comment\n\n" + strings.Join(lines, "\n") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestWhoComesIn(t *testing.T) {
	a, b, c := New(), New(), New()
	for _, tc := range []struct {
		name             string
		opener, answerer Keys
		in, welcomed     bool
	}{
		{"open site", nil, nil, true, true},
		{"same key", keysOf(t, a), keysOf(t, a), true, true},
		{"another key", keysOf(t, a), keysOf(t, b), false, false},
		{"no key", nil, keysOf(t, a), false, false},
		{"open answerer", keysOf(t, a), nil, true, false},
		{"change begins there", keysOf(t, a), keysOf(t, a, b), true, true},
		{"change begins here", keysOf(t, a, b), keysOf(t, a), true, true},
		{"in the middle", keysOf(t, a, b), keysOf(t, b, a), true, true},
		{"it ends there", keysOf(t, a, b), keysOf(t, b), true, true},
		{"it has passed by", keysOf(t, a), keysOf(t, b, c), false, false},
	} {
		p := Pair{"one", "two"}
		challenge := Challenge()
		opened := tc.opener.Open(p, challenge)
		welcome, ok := tc.answerer.Answer(p, challenge, opened)
		if ok != tc.in {
			t.Errorf("%s: let in: %v", tc.name, ok)
		}
		if got := ok && tc.opener.Welcomed(p, challenge, opened, welcome); got != tc.welcomed {
			t.Errorf("%s: welcomed: %v", tc.name, got)
		}
	}
}

// TestBound changes one thing at a time that a proof is bound to.
func TestBound(t *testing.T) {
	k := keysOf(t, New())
	p := Pair{"one", "two"}
	challenge := Challenge()
	opened := k.Open(p, challenge)
	welcome, ok := k.Answer(p, challenge, opened)
	if !ok {
		t.Fatal("the honest one is refused")
	}
	for name, ok := range map[string]bool{
		"relayed to another":   second(k.Answer(Pair{"one", "three"}, challenge, opened)),
		"relayed from another": second(k.Answer(Pair{"three", "two"}, challenge, opened)),
		"sent back":            second(k.Answer(Pair{"two", "one"}, challenge, opened)),
		"repeated":             second(k.Answer(p, Challenge(), opened)),
		"welcome as a proof":   second(k.Answer(p, challenge, append(opened[:nonceSize:nonceSize], welcome...))),
		"proof as a welcome":   k.Welcomed(p, challenge, opened, opened[nonceSize:]),
		"empty welcome":        k.Welcomed(p, challenge, opened, nil),
		"cut":                  second(k.Answer(p, challenge, opened[:len(opened)-1])),
		"empty":                second(k.Answer(p, challenge, nil)),
		"three proofs":         second(k.Answer(p, challenge, append(opened, bytes.Repeat(opened[nonceSize:], 2)...))),
	} {
		if ok {
			t.Errorf("%s: let in", name)
		}
	}
}

func second(_ []byte, ok bool) bool { return ok }

func TestParse(t *testing.T) {
	secret := New()
	for _, bad := range []string{"", "#\n", "x", prefix, prefix + "AAAA", secret + "A", secret + "\n" + New() + "\n" + New(), strings.Repeat("\n", maxFile+1)} {
		_, err := Parse([]byte(bad))
		if err == nil {
			t.Errorf("%.40q is a key file", bad)
			continue
		}
		if strings.Contains(err.Error(), secret[len(prefix):len(prefix)+8]) {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(New()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := Parse(b); err == nil && (len(k) == 0 || len(k) > maxKeys) {
			t.Errorf("%d keys", len(k))
		}
	})
}

// FuzzAnswer: nothing but a proof made with the key is welcome, whatever the other side sends.
func FuzzAnswer(f *testing.F) {
	keys, err := Parse([]byte(New()))
	if err != nil {
		f.Fatal(err)
	}
	p := Pair{Opener: "a", Answerer: "b"}
	challenge := Challenge()
	f.Add(keys.Open(p, challenge))
	f.Add(keys.Open(Pair{Opener: "x", Answerer: "b"}, challenge))
	f.Add(make([]byte, nonceSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		welcome, ok := keys.Answer(p, challenge, b)
		if ok && !keys.Welcomed(p, challenge, b, welcome) {
			t.Error("a welcome that the other side refuses")
		}
		proves := len(b) >= nonceSize+proofSize && bytes.Contains(b[nonceSize:], p.prove(keys[0], opener, challenge, b[:nonceSize]))
		if ok && !proves {
			t.Error("welcome without a proof")
		}
		if keys.Welcomed(p, challenge, make([]byte, nonceSize), b) {
			t.Error("any bytes are a welcome")
		}
	})
}
