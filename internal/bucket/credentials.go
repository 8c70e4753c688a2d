package bucket

import (
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	// askRole bounds a question for the credentials of the instance: where there are none, nobody
	// answers.
	askRole = 2 * time.Second
	// noneFor is how long it is believed that there are no credentials.
	noneFor = time.Minute
)

// usual looks for credentials where all programs do: in the environment, in the file that systemd
// hands over, in the shared file, and at the service that knows the role of the instance. If there
// are none, requests are not signed.
type usual struct {
	chain *credentials.Chain

	mu   sync.Mutex
	none time.Time // until then there are none
}

// systemdCredential is the name of the shared credentials file among systemd's credentials.
const systemdCredential = "nixp2p.aws"

func newUsual(profile string, getenv func(string) string) *usual {
	providers := []credentials.Provider{&credentials.EnvAWS{}}
	if dir := getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		providers = append(providers, &credentials.FileAWSCredentials{Filename: filepath.Join(dir, systemdCredential), Profile: profile})
	}
	providers = append(providers,
		&credentials.FileAWSCredentials{Profile: profile},
		&credentials.IAM{Client: &http.Client{Timeout: askRole, Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: askRole / 2}).DialContext,
		}}},
	)
	return &usual{chain: &credentials.Chain{Providers: providers}}
}

// RetrieveWithCredContext is part of credentials.Provider.
func (u *usual) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	v, err := u.chain.RetrieveWithCredContext(cc)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.none = time.Time{}
	if err != nil || v.AccessKeyID == "" {
		u.none = time.Now().Add(noneFor)
	}
	return v, err
}

// Retrieve is part of credentials.Provider.
func (u *usual) Retrieve() (credentials.Value, error) { return u.RetrieveWithCredContext(nil) }

// IsExpired is part of credentials.Provider.
func (u *usual) IsExpired() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.none.IsZero() {
		return time.Now().After(u.none)
	}
	return u.chain.IsExpired()
}
