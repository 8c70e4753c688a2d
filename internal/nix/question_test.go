package nix

import "testing"

func TestQuestion(t *testing.T) {
	h, err := ParseStoreHash("6lwdzpbig6zz8678blcqr5f5q1caxjw2")
	if err != nil {
		t.Fatal(err)
	}
	// printf nixp2p-q16lwdzpbig6zz8678blcqr5f5q1caxjw2 | sha256sum
	const want = "c30d95554809c4090c0b53ae4d2330e873e08d2d0ba78fe265ce555f334bb68a"
	q := h.Question()
	if q.String() != want {
		t.Errorf("question is %s, want %s", q, want)
	}
	back, err := ParseQuestion(q.String())
	if err != nil || back != q {
		t.Errorf("reads back as %s, %v", back, err)
	}
	for _, bad := range []string{"", want[:63], want + "0", "G" + want[1:], "A" + want[1:]} {
		if _, err := ParseQuestion(bad); err == nil {
			t.Errorf("%q is a question", bad)
		}
	}
}
