package netif

import (
	"encoding/binary"
	"strings"
	"syscall"
)

// Attributes of a link (linux/if_link.h).
const (
	attrMaster   = 10
	attrLinkInfo = 18
	attrKind     = 1      // in attrLinkInfo
	attrMask     = 0x3fff // without the flags of a type
)

// kernelFacts asks the kernel for all interfaces, by index. It is empty if that is not allowed.
func kernelFacts() map[int]fact {
	rib, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC)
	if err != nil {
		return nil
	}
	messages, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return nil
	}
	facts := make(map[int]fact)
	for _, m := range messages {
		if m.Header.Type != syscall.RTM_NEWLINK || len(m.Data) < syscall.SizeofIfInfomsg {
			continue
		}
		index := binary.NativeEndian.Uint32(m.Data[4:])
		facts[int(index)] = parseLink(m.Data[syscall.SizeofIfInfomsg:])
	}
	return facts
}

// parseLink reads the attributes of a link.
func parseLink(attrs []byte) (f fact) {
	eachAttr(attrs, func(kind uint16, value []byte) {
		switch {
		case kind == attrMaster && len(value) == 4:
			f.bridge = int(binary.NativeEndian.Uint32(value))
		case kind == attrLinkInfo:
			eachAttr(value, func(kind uint16, value []byte) {
				if kind == attrKind {
					f.kind = strings.TrimRight(string(value), "\x00")
				}
			})
		}
	})
	return f
}

// eachAttr calls f with the attributes in b, up to the first that is cut.
func eachAttr(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&attrMask, b[4:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}
