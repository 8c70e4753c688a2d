package wire

// maxName is the longest host name (RFC 1035, 2.3.4).
const maxName = 255

// ParseName reads the name of a machine: letters, digits, dots, hyphens and underscores. It
// returns "" for anything else: people see it beside what this node says itself.
func ParseName(b []byte) string {
	if len(b) > maxName {
		return ""
	}
	for _, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return ""
		}
	}
	return string(b)
}
