package main

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nixp2p/nixp2p/internal/doctor"
)

// doctorPageEnv names the file that TestDoctorFaults writes: docs/doctor.md.
const doctorPageEnv = "NIXP2P_DOCTOR_PAGE"

// doctorPage is what the doctor said of a machine that is well, and of each fault.
type doctorPage struct {
	well string

	mu   sync.Mutex
	rows []string
}

// newDoctorPage looks at a machine that is well. If a file was asked for, it is written when all
// rows of the test have ended.
func newDoctorPage(t *testing.T, well *patient) *doctorPage {
	r, _ := well.admit(t).visit()
	page := &doctorPage{well: well.plain(say(r))}
	t.Cleanup(func() {
		name := os.Getenv(doctorPageEnv)
		if name == "" || t.Failed() {
			return
		}
		if err := os.WriteFile(name, []byte(page.text()), 0o644); err != nil {
			t.Error(err)
		}
	})
	return page
}

// add notes what was found of a fault.
func (d *doctorPage) add(fault string, p *patient, found []doctor.Finding) {
	slices.SortFunc(found, func(a, b doctor.Finding) int { return cmp.Compare(a.Check, b.Check) })
	var says, hints []string
	for _, f := range found {
		says = append(says, fmt.Sprintf("%s %s: %s", f.Level, f.Check, f.Message))
		if f.Hint != "" && !slices.Contains(hints, f.Hint) {
			hints = append(hints, f.Hint)
		}
	}
	cell := func(lines []string) string {
		return strings.ReplaceAll(p.plain(strings.Join(lines, "<br>")), "|", "\\|")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rows = append(d.rows, fmt.Sprintf("| %s | %s | %s |\n", fault, cell(says), cell(hints)))
}

var (
	anyPort = regexp.MustCompile(`127\.0\.0\.1([:/]|/tcp/)[0-9]{4,5}\b`)
	anyTemp = regexp.MustCompile(`/tmp/(Test[^ :,]*/[0-9]{3}|realnix-client[0-9]*)`)
)

// plain replaces what is the test's own by what a user has there.
func (p *patient) plain(text string) string {
	const node, page = "\x00node", "\x00page"
	text = strings.NewReplacer(
		strings.TrimPrefix(p.url, "http://"), node, strings.TrimPrefix(p.admin, "http://"), page,
		p.other, "https://cache.nixos.org", keyName(p.corpus.PublicKey), "cache.nixos.org-1", p.corpus.StoreRoot, "",
	).Replace(text)
	text = anyTemp.ReplaceAllString(anyPort.ReplaceAllString(text, "127.0.0.1${1}PORT"), "DIR")
	return strings.NewReplacer(node, "127.0.0.1:7654", page, "127.0.0.1:7655", "https://cache.nixos.org/", "https://cache.nixos.org").Replace(text)
}

func (d *doctorPage) text() string {
	slices.Sort(d.rows)
	return `# What doctor says

` + "`nixp2p doctor`" + ` checks everything between Nix and the daemon, through the daemon where that is possible. A line
that begins with *ok* names something that was tried. It exits with 1 if there is a failure.

This page is written by a test that plants each fault (` + "`" + doctorPageEnv + `=$PWD/docs/doctor.md go test -run TestDoctorFaults
./cmd/nixp2p` + "`" + `) and expects these sentences and no others. *PORT* and *DIR* are the test's own.

## A machine that is well

` + "```\n" + d.well + "```" + `

## Faults

| fault | doctor says | what to do |
| --- | --- | --- |
` + strings.Join(d.rows, "")
}
