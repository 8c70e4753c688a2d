package localstore

import (
	"database/sql/driver"
	"errors"
	"io"
	"net/url"

	"modernc.org/sqlite"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// The ways to open the database file. None of them writes to it or to what lies beside it, for
// no user, root included:
//
//   - live: readonly_shm keeps SQLite from making or changing the -shm file, which it would
//     do for root; where nobody else has it open SQLite then works with a wal-index of its
//     own in memory. It must not be used when there is no -wal, which root would make.
//   - snapshot: the file alone, without locks. Right only while nobody writes.
const (
	openLive     = "mode=ro&readonly_shm=1&_pragma=busy_timeout(200)"
	openSnapshot = "mode=ro&immutable=1"
)

// Statements. The range of byHash is that of all paths with one hash part: '.' comes next
// behind '-'.
const (
	sqlByHash = `SELECT ` + rowColumns + ` FROM ValidPaths p WHERE p.path >= ?1 AND p.path < ?2 ORDER BY p.path LIMIT 1`
	sqlByPath = `SELECT id, hash FROM ValidPaths WHERE path = ?1`
	sqlAfter  = `SELECT ` + rowColumns + ` FROM ValidPaths p WHERE p.id > ?1 ORDER BY p.id LIMIT ?2`
	sqlIDs    = `SELECT id FROM ValidPaths`
	sqlCount  = `SELECT count(*) FROM ValidPaths`
	sqlSeq    = `SELECT seq FROM sqlite_sequence WHERE name = 'ValidPaths'`
	sqlData   = `PRAGMA data_version`
	// sqlFormat reads the file format versions out of the database header through SQLite: opening
	// and closing the file here would drop the POSIX locks that this process holds on it.
	sqlFormat = `SELECT hex(substr(data, 19, 2)) FROM sqlite_dbpage WHERE pgno = 1`
)

const formatWAL = "0202"

// conn is one connection with its statements. It is used by one goroutine at a time. It is
// the driver's own: database/sql would open further ones when it likes, also in states of the
// files in which that must not be tried.
type conn struct {
	raw   driver.Conn
	stmts map[string]driver.Stmt
}

func openConn(path, how string) (*conn, error) {
	name := url.URL{Scheme: "file", Path: path, RawQuery: how}
	raw, err := new(sqlite.Driver).Open(name.String())
	if err != nil {
		return nil, err
	}
	c := &conn{raw: raw, stmts: make(map[string]driver.Stmt)}
	for _, sql := range []string{sqlByHash, sqlByPath, sqlAfter, sqlIDs, sqlCount, sqlSeq, sqlData, sqlFormat} {
		stmt, err := raw.Prepare(sql)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.stmts[sql] = stmt
	}
	return c, nil
}

func (c *conn) close() error {
	for _, s := range c.stmts {
		_ = s.Close() // what a read-only statement has to say when it ends is known already
	}
	return c.raw.Close()
}

// query calls each with every row of a statement. The values are the callee's to keep, the
// slice is not.
func (c *conn) query(sql string, width int, each func([]driver.Value), args ...driver.Value) (err error) {
	// The driver's method without a context: with one it would start a goroutine for each query.
	rows, err := c.stmts[sql].Query(args) //nolint:staticcheck
	if err != nil {
		return err
	}
	defer func() {
		if e := rows.Close(); err == nil {
			err = e
		}
	}()
	v := make([]driver.Value, width)
	for {
		err := rows.Next(v)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		each(v)
	}
}

// scalar returns the single value of a statement, nil when it has no row.
func (c *conn) scalar(sql string) (got driver.Value, err error) {
	err = c.query(sql, 1, func(v []driver.Value) { got = v[0] })
	return got, err
}

func (c *conn) number(sql string) (int64, error) {
	v, err := c.scalar(sql)
	n, _ := v.(int64)
	return n, err
}

// byHash returns the row of a store hash, nil when there is none.
func (c *conn) byHash(h nix.StoreHash) (r *row, err error) {
	from := h.Append(append(make([]byte, 0, 48), nix.StoreDir+"/"...))
	to := append(from[:len(from):len(from)], '.')
	from = append(from, '-')
	err = c.query(sqlByHash, rowWidth, func(v []driver.Value) { r = parseRow(v) }, string(from), string(to))
	return r, err
}

// byPath returns the id and NAR hash of a path; id 0 when there is no such row.
func (c *conn) byPath(p nix.StorePath) (id int64, nar nix.NarHash, err error) {
	err = c.query(sqlByPath, 2, func(v []driver.Value) {
		if hash, err := nix.ParseNarHash(text(v[1])); err == nil {
			id, _ = v[0].(int64)
			nar = hash
		}
	}, p.String())
	return id, nar, err
}

// after returns up to limit rows with ids above id, ascending.
func (c *conn) after(id int64, limit int) (rows []*row, err error) {
	err = c.query(sqlAfter, rowWidth, func(v []driver.Value) { rows = append(rows, parseRow(v)) }, id, int64(limit))
	return rows, err
}

// ids returns the ids of all rows, in no order.
func (c *conn) ids(room int) ([]int64, error) {
	ids := make([]int64, 0, room)
	err := c.query(sqlIDs, 1, func(v []driver.Value) {
		if id, ok := v[0].(int64); ok {
			ids = append(ids, id)
		}
	})
	return ids, err
}
