package bucket

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Location is where a bucket is.
type Location struct {
	Name     string // of the bucket
	Prefix   string // of all keys: "" or ending in a slash
	Endpoint string // host, or host:port
	Plain    bool   // HTTP without TLS
	Region   string
	Profile  string // in the shared credentials file, "" for the default one
	virtual  bool   // the bucket's name is part of the host's
}

var errURL = errors.New("not the address of a bucket")

// Parse reads "s3://NAME/PREFIX?endpoint=…&region=…", in which Nix's own parameters endpoint, region,
// scheme and profile count. Without an endpoint it is AWS. Region "" is what getenv says, else
// us-east-1.
func Parse(text string, getenv func(string) string) (Location, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.Opaque != "" || u.User != nil || u.Fragment != "" {
		return Location{}, fmt.Errorf("%w: %q", errURL, text)
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Location{}, fmt.Errorf("%w: %w", errURL, err)
	}
	for k := range q {
		if !slices.Contains([]string{"endpoint", "region", "scheme", "profile"}, k) {
			return Location{}, fmt.Errorf("%w: parameter %q is none of endpoint, region, scheme, profile", errURL, k)
		}
	}
	l := Location{
		Name: u.Host, Prefix: strings.Trim(u.Path, "/"), Profile: q.Get("profile"),
		Region: cmp.Or(q.Get("region"), getenv("AWS_REGION"), getenv("AWS_DEFAULT_REGION"), "us-east-1"),
	}
	if l.Prefix != "" {
		l.Prefix += "/"
	}
	for what, name := range map[string]string{"name": l.Name, "region": l.Region} {
		if strings.ContainsFunc(name, notInName) {
			return Location{}, fmt.Errorf("%w: %s %q has more than letters, digits, dots, dashes and underscores", errURL, what, name)
		}
	}
	return l, l.setEndpoint(q.Get("endpoint"), q.Get("scheme"))
}

// notInName reports whether a letter is in no name of a bucket or region: both become parts of a
// host's name.
func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_", r)
}

func (l *Location) setEndpoint(endpoint, scheme string) error {
	if before, after, ok := strings.Cut(endpoint, "://"); ok {
		scheme, endpoint = before, after
	}
	l.Plain = scheme == "http"
	switch {
	case scheme != "" && scheme != "http" && scheme != "https":
		return fmt.Errorf("%w: scheme %q is neither http nor https", errURL, scheme)
	case endpoint == "":
		l.Endpoint = "s3." + l.Region + ".amazonaws.com"
		l.virtual = !strings.Contains(l.Name, ".") // else its certificate does not fit
		return nil
	}
	l.Endpoint = strings.TrimSuffix(endpoint, "/")
	if at, err := url.Parse("http://" + l.Endpoint); err != nil || at.Host != l.Endpoint {
		return fmt.Errorf("%w: endpoint %q is not a host", errURL, endpoint)
	}
	return nil
}

// String returns the address without parameters, for people.
func (l Location) String() string { return strings.TrimSuffix("s3://"+l.Name+"/"+l.Prefix, "/") }

// URL returns the directory of the bucket that has the narinfos.
func (l Location) URL() string {
	u := url.URL{Scheme: "https", Host: l.Endpoint, Path: "/" + l.Prefix}
	if l.Plain {
		u.Scheme = "http"
	}
	if l.virtual {
		u.Host = l.Name + "." + l.Endpoint
	} else {
		u.Path = "/" + l.Name + u.Path
	}
	return u.String()
}
