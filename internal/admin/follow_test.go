package admin

import (
	"slices"
	"testing"
)

// TestFollowedState: a list of which something is not here, and will not be, does not pass for whole.
func TestFollowedState(t *testing.T) {
	complete := []Generation{{Complete: true}}
	for _, c := range []struct {
		is       Followed
		want     string
		problems []string
	}{
		{Followed{}, "not read yet", nil},
		{Followed{Generations: []Generation{{}}}, "looking up what it needs", nil},
		{Followed{Generations: []Generation{{}}, MissingPaths: 1, MissingBytes: 2e6}, "1 path to fetch (1.9 MiB)", nil},
		{Followed{Generations: complete}, "all here", nil},
		{Followed{Generations: complete, LeftOutPaths: 2, LeftOutBytes: 3e9, Absent: 1}, "all here but 3 paths",
			[]string{"no room in the cache for 2 paths (2.8 GiB)", "no source has 1 path"}},
	} {
		if got := c.is.State(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.is, got, c.want)
		}
		if got := c.is.Problems(); !slices.Equal(got, c.problems) {
			t.Errorf("%+v: problems %q", c.is, got)
		}
	}
}
