package nixconf

import "testing"

// TestProxyTo: as curl 7.88 and 8 have it.
func TestProxyTo(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		host string
		want string // the variable
	}{
		{nil, "127.0.0.1", ""},
		{map[string]string{"http_proxy": "http://p:3128"}, "127.0.0.1", "http_proxy"},
		{map[string]string{"http_proxy": "http://p:3128"}, "localhost", "http_proxy"},
		{map[string]string{"HTTP_PROXY": "http://p:3128"}, "127.0.0.1", ""}, // curl ignores it: CGI
		{map[string]string{"https_proxy": "http://p:3128"}, "127.0.0.1", ""},
		{map[string]string{"all_proxy": "socks5h://p"}, "127.0.0.1", "all_proxy"},
		{map[string]string{"ALL_PROXY": "p"}, "127.0.0.1", "ALL_PROXY"},
		{map[string]string{"http_proxy": "p", "no_proxy": "*"}, "127.0.0.1", ""},
		{map[string]string{"http_proxy": "p", "no_proxy": "localhost"}, "127.0.0.1", "http_proxy"},
		{map[string]string{"http_proxy": "p", "no_proxy": "localhost,127.0.0.1"}, "127.0.0.1", ""},
		{map[string]string{"http_proxy": "p", "no_proxy": "x 127.0.0.0/8"}, "127.0.0.1", ""},
		{map[string]string{"http_proxy": "p", "NO_PROXY": "127.0.0.1"}, "127.0.0.1", ""},
		{map[string]string{"http_proxy": "p", "no_proxy": "x", "NO_PROXY": "127.0.0.1"}, "127.0.0.1", "http_proxy"},
		{map[string]string{"http_proxy": "p", "no_proxy": "[::1]"}, "::1", ""},
		{map[string]string{"http_proxy": "p", "no_proxy": ".example.org"}, "a.example.org", ""},
		{map[string]string{"http_proxy": "p", "no_proxy": "example.org"}, "Example.org.", ""},
		{map[string]string{"http_proxy": "p", "no_proxy": "ample.org"}, "example.org", "http_proxy"},
	} {
		if got, _ := ProxyTo(func(k string) string { return c.env[k] }, c.host); got != c.want {
			t.Errorf("%v, %s: %q, want %q", c.env, c.host, got, c.want)
		}
	}
}
