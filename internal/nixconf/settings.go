package nixconf

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// DefaultSubstituter is Nix's list of substituters if none is set.
const DefaultSubstituter = "https://cache.nixos.org/"

// Settings are the settings that decide whether and how Nix uses a cache.
type Settings struct {
	Substituters        []string
	TrustedSubstituters []string // any user may turn these on
	TrustedPublicKeys   []string
	TrustedUsers        []string // names, and @GROUP
	AllowedUsers        []string // the same, and * for all
	ConnectTimeout      int64    // seconds; 0: no limit
	NegativeTTL         int64    // seconds for which a miss is remembered
	Fallback            bool
	Substitute          bool
	RequireSigs         bool
	NetrcFile           string // credentials for caches; "" is the default, netrc next to nix.conf
	CACertFile          string // setting ssl-cert-file; "" is Nix's own choice
}

// Defaults are the settings of a Nix without configuration.
func Defaults() Settings {
	return Settings{
		Substituters:      []string{DefaultSubstituter},
		TrustedPublicKeys: []string{"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="},
		TrustedUsers:      []string{"root"},
		AllowedUsers:      []string{"*"},
		NegativeTTL:       3600,
		Substitute:        true,
		RequireSigs:       true,
	}
}

// fields maps the names of settings to the fields that hold them: *[]string, *string, *int64 or *bool.
func (s *Settings) fields() map[string]any {
	return map[string]any{
		"substituters":               &s.Substituters,
		"trusted-substituters":       &s.TrustedSubstituters,
		"trusted-public-keys":        &s.TrustedPublicKeys,
		"trusted-users":              &s.TrustedUsers,
		"allowed-users":              &s.AllowedUsers,
		"connect-timeout":            &s.ConnectTimeout,
		"narinfo-cache-negative-ttl": &s.NegativeTTL,
		"fallback":                   &s.Fallback,
		"substitute":                 &s.Substitute,
		"require-sigs":               &s.RequireSigs,
		"netrc-file":                 &s.NetrcFile,
		"ssl-cert-file":              &s.CACertFile,
	}
}

// apply applies statements in order: a list replaces the one before it, unless "extra-" adds to
// it. Values that Nix would refuse are skipped.
func (s *Settings) apply(all []statement) {
	fields := s.fields()
	for _, st := range all {
		switch f := fields[st.name].(type) {
		case *[]string:
			if !st.extra {
				*f = nil
			}
			*f = append(*f, st.values...)
		case *string:
			*f = strings.Join(st.values, " ")
		case *int64:
			if n, err := strconv.ParseInt(strings.Join(st.values, " "), 10, 64); err == nil {
				*f = n
			}
		case *bool:
			switch strings.Join(st.values, " ") {
			case "true", "yes", "1":
				*f = true
			case "false", "no", "0":
				*f = false
			}
		}
	}
}

// parseShown reads what `nix config show --json` prints.
func parseShown(text []byte) (Settings, error) {
	s := Defaults()
	var shown map[string]struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(text, &shown); err != nil {
		return s, fmt.Errorf("settings of nix: %w", err)
	}
	for name, to := range s.fields() {
		v, ok := shown[name]
		if !ok {
			continue
		}
		if err := json.Unmarshal(v.Value, to); err != nil {
			return s, fmt.Errorf("settings of nix: %s: %w", name, err)
		}
	}
	return s, nil
}

// SameCache reports whether two URLs of substituters mean the same cache to Nix, which ignores
// parameters and a slash at the end.
func SameCache(a, b string) bool {
	a, _, _ = strings.Cut(a, "?")
	b, _, _ = strings.Cut(b, "?")
	return strings.TrimRight(a, "/") == strings.TrimRight(b, "/")
}

// Uses reports whether the cache is among the substituters.
func (s *Settings) Uses(url string) bool {
	return slices.ContainsFunc(s.Substituters, func(u string) bool { return SameCache(u, url) })
}
