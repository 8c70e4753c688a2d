package nix

import "testing"

func TestCacheInfo(t *testing.T) {
	for text, want := range map[string]CacheInfo{
		"": {},
		"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n":                {"/nix/store", true, 40},
		"StoreDir: /nix/store\r\nWantMassQuery: 1\r\nPriority: 40\r\n":          {"/nix/store", true, 40},
		"Priority:-3\nWantMassQuery: 2\nUnknown: x\nno colon\n\n: \nPriority:7": {"", false, 7},
		"<html><body>login here</body></html>\n":                                {},
	} {
		got, err := ParseCacheInfo([]byte(text))
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"Priority: high\n", "Priority:\n", "Priority: 1e3\n", "Priority: 99999999999999999999\n"} {
		if got, err := ParseCacheInfo([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
	const text = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"
	if got := string(CacheInfo{"/nix/store", true, 30}.Text()); got != text {
		t.Errorf("Text: %q", got)
	}
}

func FuzzCacheInfo(f *testing.F) {
	f.Add([]byte("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseCacheInfo(text)
		if err != nil {
			return
		}
		again, err := ParseCacheInfo(c.Text())
		if err != nil || again != c {
			t.Fatalf("%q: %+v, then %+v, %v", text, c, again, err)
		}
	})
}
