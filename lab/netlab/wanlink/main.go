//go:build linux

// Wanlink is the wide-area link of netlab.sh: it joins two TUN devices in two
// network namespaces and gives the link between them a rate, a one-way delay, a
// bounded queue and random loss, for kernels that have no sch_netem. It makes
// no namespace and no route itself.
//
// netlab.sh opens /dev/net/tun once inside
// each namespace (a TUN device is born in the namespace where the file was
// opened) and hands the two files over as descriptors 3 (LAN side) and 4
// (upstream side), so the process itself needs no setns.
//
//	wanlink -name wan0 -conf FILE       run; SIGHUP reads FILE again, SIGUSR1 prints counts
//
// FILE holds words like "rate=200 delay=20 loss=0 queue=100": rate in Mbit/s
// (0 = no limit) per direction, delay one way in ms, loss in percent, queue as
// the longest wait in ms before the tail drops. "up.rate=..." or
// "down.rate=..." set one direction; "down" is upstream -> LAN.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	tunSetIff = 0x400454ca
	iffTun    = 0x0001
	iffNoPI   = 0x1000
)

// slice is what is sent together with what is due now.
const slice = 300 * time.Microsecond

type setting struct{ rate, delay, loss, queue float64 }

// direction is one way of the link.
type direction struct {
	set                    atomic.Pointer[setting]
	pkts, bytes, lost, cut atomic.Int64
}

type packet struct {
	b   []byte
	due time.Time
}

func attach(fd uintptr, name string) error {
	var req [40]byte
	copy(req[:16], name)
	*(*uint16)(unsafe.Pointer(&req[16])) = iffTun | iffNoPI
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, tunSetIff, uintptr(unsafe.Pointer(&req[0]))); e != 0 {
		return fmt.Errorf("TUNSETIFF %s on descriptor %d: %w", name, fd, e)
	}
	return nil
}

func (d *direction) run(in, out int) {
	ch := make(chan packet, 1<<16)
	go func() {
		for p := range ch {
			// What is due within a slice goes out with what is due now: a
			// sleep a packet would cost more than the packets themselves.
			if w := time.Until(p.due); w > slice {
				time.Sleep(w)
			}
			if _, err := syscall.Write(out, p.b); err != nil && err != syscall.EINVAL && err != syscall.EIO {
				fmt.Fprintln(os.Stderr, "wanlink: write:", err)
			}
		}
	}()
	buf := make([]byte, 65536)
	var free time.Time // when the line is free again
	for {
		n, err := syscall.Read(in, buf)
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "wanlink: read:", err)
			os.Exit(1)
		}
		s := d.set.Load()
		now := time.Now()
		if s.loss > 0 && rand.Float64()*100 < s.loss {
			d.lost.Add(1)
			continue
		}
		if free.Before(now) {
			free = now
		}
		if s.rate > 0 {
			if s.queue > 0 && free.Sub(now) > ms(s.queue) {
				d.cut.Add(1)
				continue
			}
			free = free.Add(time.Duration(float64(n) * 8e3 / s.rate)) // rate is Mbit/s
		}
		d.pkts.Add(1)
		d.bytes.Add(int64(n))
		select {
		case ch <- packet{append([]byte(nil), buf[:n]...), free.Add(ms(s.delay))}:
		default:
			d.cut.Add(1)
		}
	}
}

func ms(f float64) time.Duration { return time.Duration(f * float64(time.Millisecond)) }

func load(file string, up, down *direction) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	u := setting{queue: 100}
	d := u
	for _, w := range strings.Fields(string(b)) {
		k, v, ok := strings.Cut(w, "=")
		f, err := strconv.ParseFloat(v, 64)
		if !ok || err != nil || f < 0 {
			return fmt.Errorf("bad word %q", w)
		}
		to := []*setting{&u, &d}
		if r, ok := strings.CutPrefix(k, "up."); ok {
			k, to = r, to[:1]
		} else if r, ok := strings.CutPrefix(k, "down."); ok {
			k, to = r, to[1:]
		}
		for _, s := range to {
			switch k {
			case "rate":
				s.rate = f
			case "delay":
				s.delay = f
			case "loss":
				s.loss = f
			case "queue":
				s.queue = f
			default:
				return fmt.Errorf("unknown word %q", w)
			}
		}
	}
	up.set.Store(&u)
	down.set.Store(&d)
	return nil
}

func main() {
	name := flag.String("name", "wan0", "device name on both sides")
	conf := flag.String("conf", "", "settings file")
	flag.Parse()
	var up, down direction
	if err := load(*conf, &up, &down); err != nil {
		fmt.Fprintln(os.Stderr, "wanlink:", err)
		os.Exit(2)
	}
	for _, fd := range []uintptr{3, 4} {
		if err := attach(fd, *name); err != nil {
			fmt.Fprintln(os.Stderr, "wanlink:", err)
			os.Exit(2)
		}
	}
	go up.run(3, 4)
	go down.run(4, 3)
	sig := make(chan os.Signal, 4)
	signal.Notify(sig, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGTERM, syscall.SIGINT)
	for s := range sig {
		switch s {
		case syscall.SIGHUP:
			if err := load(*conf, &up, &down); err != nil {
				fmt.Fprintln(os.Stderr, "wanlink: settings kept:", err)
			}
		case syscall.SIGUSR1:
			for i, d := range []*direction{&up, &down} {
				fmt.Fprintf(os.Stderr, "wanlink: %s pkts=%d bytes=%d lost=%d tail_dropped=%d\n",
					[]string{"up", "down"}[i], d.pkts.Load(), d.bytes.Load(), d.lost.Load(), d.cut.Load())
			}
		default:
			return
		}
	}
}
