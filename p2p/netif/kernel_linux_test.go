package netif

import (
	"encoding/binary"
	"testing"
)

func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestParseLink(t *testing.T) {
	const nested = 0x8000
	b := append(attr(3, []byte("eth0\x00")), attr(attrMaster, binary.NativeEndian.AppendUint32(nil, 7))...)
	b = append(b, attr(attrLinkInfo|nested, attr(attrKind, []byte("veth\x00")))...)
	if f := parseLink(b); f != (fact{"veth", 7}) {
		t.Errorf("%+v", f)
	}
	if len(kernelFacts()) == 0 {
		t.Error("the kernel names no interface")
	}
}

func FuzzParseLink(f *testing.F) {
	f.Add(attr(attrLinkInfo, attr(attrKind, []byte("bridge\x00"))))
	f.Add([]byte{4, 0, 10, 0, 255, 255})
	f.Fuzz(func(_ *testing.T, b []byte) { parseLink(b) })
}
