package admin

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// requireChromium makes a missing browser a failure: where everything is installed, a test
// that cannot find it has failed.
const requireChromium = "NIXP2P_REQUIRE_CHROMIUM"

// browserTime bounds one answer of the browser. Its start is slow on a busy machine.
const browserTime = 60 * time.Second

// chromium is a browser without windows, spoken to in the DevTools protocol over two pipes.
type chromium struct {
	t    *testing.T
	to   io.WriteCloser
	ends chan struct{} // closed when the browser closed its pipe

	mu    sync.Mutex
	last  int
	calls map[int]chan reply
	tabs  map[string]*tab
}

// reply is a message of the browser: an answer (ID) or an event (Method).
type reply struct {
	ID        int             `json:"id"`
	SessionID string          `json:"sessionId"`
	Method    string          `json:"method"`
	Params    json.RawMessage `json:"params"`
	Result    json.RawMessage `json:"result"`
	Error     *struct {
		Message string `json:"message"`
	} `json:"error"`
}

type params map[string]any

// startChromium starts a browser with a profile of its own, which ends with the test.
func startChromium(t *testing.T) *chromium {
	t.Helper()
	name, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv(requireChromium) != "" {
			t.Fatal("there is no chromium")
		}
		t.Skip("THERE IS NO chromium: the page is not looked at in a browser")
	}
	fromTest, toBrowser, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromBrowser, toTest, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"--headless", "--remote-debugging-pipe", "--user-data-dir=" + t.TempDir(), "--no-first-run", "--disable-gpu",
		"--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
		"--force-color-profile=srgb", "--hide-scrollbars", "--no-proxy-server", "--host-resolver-rules=MAP evil.example 127.0.0.1", "about:blank",
	}
	if os.Getuid() == 0 {
		args = append(args, "--no-sandbox") // it refuses to be root with one
	}
	cmd := exec.Command(name, args...)
	cmd.ExtraFiles = []*os.File{fromTest, toTest} // descriptors 3 and 4
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fromTest.Close()
	toTest.Close()
	c := &chromium{t: t, to: toBrowser, ends: make(chan struct{}), calls: map[int]chan reply{}, tabs: map[string]*tab{}}
	go c.listen(fromBrowser)
	t.Cleanup(func() {
		_ = c.call("", "Browser.close", nil, nil)
		toBrowser.Close()
		select {
		case <-c.ends:
		case <-time.After(browserTime):
			_ = cmd.Process.Kill()
			<-c.ends
		}
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("chromium says:\n%s", said.Bytes())
		}
	})
	return c
}

// listen hands out what the browser says. Messages end with a zero byte.
func (c *chromium) listen(r io.ReadCloser) {
	defer close(c.ends)
	defer r.Close()
	lines := bufio.NewReader(r)
	for {
		text, err := lines.ReadBytes(0)
		if err != nil {
			return
		}
		var m reply
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		c.mu.Lock()
		call, tab := c.calls[m.ID], c.tabs[m.SessionID]
		delete(c.calls, m.ID)
		c.mu.Unlock()
		switch {
		case call != nil:
			call <- m
		case tab != nil:
			tab.event(m)
		}
	}
}

// call gives an order and reads the answer into v unless that is nil.
func (c *chromium) call(session, method string, p params, v any) error {
	answer := make(chan reply, 1)
	c.mu.Lock()
	c.last++
	message := params{"id": c.last, "method": method}
	c.calls[c.last] = answer
	if p != nil {
		message["params"] = p
	}
	if session != "" {
		message["sessionId"] = session
	}
	text, err := json.Marshal(message)
	if err == nil {
		_, err = c.to.Write(append(text, 0))
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			return fmt.Errorf("%s: %s", method, m.Error.Message)
		}
		if v == nil {
			return nil
		}
		return json.Unmarshal(m.Result, v)
	case <-c.ends:
		return io.ErrUnexpectedEOF
	case <-time.After(browserTime):
		return fmt.Errorf("%s: no answer", method)
	}
}

// tab is a page in the browser.
type tab struct {
	c       *chromium
	t       *testing.T
	session string
	loaded  chan struct{}

	mu         sync.Mutex
	complaints []string
}

// open opens an empty page of this size.
func (c *chromium) open(t *testing.T, width, height int) *tab {
	t.Helper()
	var made struct{ TargetID, SessionID, BrowserContextID string }
	tb := &tab{c: c, t: t, loaded: make(chan struct{}, 1)}
	for _, step := range []struct {
		method string
		p      func() params
	}{
		{"Target.createBrowserContext", func() params { return nil }},
		{"Target.createTarget", func() params {
			return params{"url": "about:blank", "browserContextId": made.BrowserContextID}
		}},
		{"Target.attachToTarget", func() params { return params{"targetId": made.TargetID, "flatten": true} }},
	} {
		if err := c.call("", step.method, step.p(), &made); err != nil {
			t.Fatal(err)
		}
	}
	tb.session = made.SessionID
	c.mu.Lock()
	c.tabs[tb.session] = tb
	c.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network", "Audits"} {
		tb.do(domain+".enable", nil, nil)
	}
	tb.size(width, height)
	return tb
}

func (tb *tab) do(method string, p params, v any) {
	tb.t.Helper()
	if err := tb.c.call(tb.session, method, p, v); err != nil {
		tb.t.Fatal(err)
	}
}

// size is that of the window; less than 600 wide is a phone.
func (tb *tab) size(width, height int) {
	tb.t.Helper()
	tb.do("Emulation.setDeviceMetricsOverride", params{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
}

// event keeps what a person who looks at the console would not want to see there.
func (tb *tab) event(m reply) {
	var p struct {
		Type, ErrorText string
		Canceled        bool
		Entry           struct{ Level, Text, URL string }
		Response        struct {
			Status int
			URL    string
		}
	}
	_ = json.Unmarshal(m.Params, &p)
	bad := false
	switch m.Method {
	case "Page.loadEventFired":
		select {
		case tb.loaded <- struct{}{}:
		default:
		}
	case "Runtime.exceptionThrown", "Audits.issueAdded":
		bad = true
	case "Runtime.consoleAPICalled":
		bad = p.Type == "error" || p.Type == "warning" || p.Type == "assert"
	case "Log.entryAdded":
		bad = p.Entry.Level == "error" || p.Entry.Level == "warning"
	case "Network.loadingFailed":
		bad = !p.Canceled
	case "Network.responseReceived":
		bad = p.Response.Status >= 400
	}
	if bad {
		tb.mu.Lock()
		tb.complaints = append(tb.complaints, m.Method+" "+string(m.Params))
		tb.mu.Unlock()
	}
}

// complained returns what was complained about since the last call.
func (tb *tab) complained() []string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	was := tb.complaints
	tb.complaints = nil
	return was
}

// load goes to an address and waits until all of it is there.
func (tb *tab) load(url string) {
	tb.t.Helper()
	var p struct{ ErrorText string }
	tb.do("Page.navigate", params{"url": url}, &p)
	if p.ErrorText != "" {
		tb.t.Fatal(p.ErrorText)
	}
	tb.arrive()
}

// arrive waits until all of the page is there that somebody went to.
func (tb *tab) arrive() {
	tb.t.Helper()
	select {
	case <-tb.loaded:
	case <-time.After(browserTime):
		tb.t.Fatal("the page does not load")
	}
}

// eval returns the value of an expression in the page, of a promise what it comes to.
func (tb *tab) eval(expression string, v any) {
	tb.t.Helper()
	var got struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	tb.do("Runtime.evaluate", params{"expression": expression, "awaitPromise": true, "returnByValue": true}, &got)
	if e := got.ExceptionDetails; e != nil {
		tb.t.Fatalf("%s: %s %s", expression, e.Text, e.Exception.Description)
	}
	if v != nil {
		if err := json.Unmarshal(got.Result.Value, v); err != nil {
			tb.t.Fatalf("%s: %v: %s", expression, err, got.Result.Value)
		}
	}
}

// until waits for an expression to be true.
func (tb *tab) until(expression string) {
	tb.t.Helper()
	var is bool
	tb.eval(`new Promise((done) => {
		const end = Date.now() + 20000;
		const look = () => { if (`+expression+`) done(true); else if (Date.now() > end) done(false); else setTimeout(look, 20); };
		look();
	})`, &is)
	if !is {
		tb.t.Fatalf("never: %s", expression)
	}
}

// key presses a key.
func (tb *tab) key(name string, code int) {
	tb.t.Helper()
	text := ""
	if name == "Enter" {
		text = "\r"
	}
	for _, kind := range []string{"keyDown", "keyUp"} {
		p := params{"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code}
		if kind == "keyDown" && text != "" {
			p["text"] = text
		}
		tb.do("Input.dispatchKeyEvent", p, nil)
	}
}

// shoot writes a picture of the whole page, if the caller of the test wants some.
func (tb *tab) shoot(file string) {
	tb.t.Helper()
	var shot struct{ Data string }
	tb.do("Page.captureScreenshot", params{"captureBeyondViewport": true}, &shot)
	b, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		tb.t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		tb.t.Fatal(err)
	}
}
