package guest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

// An ISO 9660 image of one flat directory. Plain ISO names know no lower case and no
// hyphens, so that each file is named three times: plainly, in Rock Ridge for Unix and
// in Joliet for Windows (and for Unix without Rock Ridge).
//
//	sector  0  system area, empty
//	       16  primary volume descriptor
//	       17  Joliet volume descriptor
//	       18  terminator
//	       19  path tables: primary LE, primary BE, Joliet LE, Joliet BE
//	       23  primary root directory
//	       24  Joliet root directory
//	       25  files
const (
	sectorSize       = 2048
	sectorPrimary    = 16
	sectorPathTables = 19
	sectorPrimaryDir = 23
	sectorJolietDir  = 24
	sectorFiles      = 25
)

// maxNameLength leaves room for all three forms in one directory record.
const maxNameLength = 30

type isoFile struct {
	name    string
	plain   string
	content []byte
	sector  int
}

// writeISO writes the image of the given files. All numbers in it follow from the
// names and contents.
func writeISO(w io.Writer, label string, contents map[string][]byte) error {
	files, sectors, err := layout(contents)
	if err != nil {
		return err
	}
	primary, err := directory(files, sectorPrimaryDir, false)
	if err != nil {
		return err
	}
	joliet, err := directory(files, sectorJolietDir, true)
	if err != nil {
		return err
	}
	var image bytes.Buffer
	image.Grow(sectors * sectorSize)
	image.Write(make([]byte, sectorPrimary*sectorSize))
	image.Write(volumeDescriptor(label, sectors, false))
	image.Write(volumeDescriptor(label, sectors, true))
	image.Write(sector([]byte("\xffCD001\x01")))
	for i := range 4 {
		image.Write(sector(pathTable(i)))
	}
	image.Write(primary)
	image.Write(joliet)
	for _, f := range files {
		image.Write(f.content)
		if rest := len(f.content) % sectorSize; rest != 0 {
			image.Write(make([]byte, sectorSize-rest))
		}
	}
	if _, err := w.Write(image.Bytes()); err != nil {
		return fmt.Errorf("write disc: %w", err)
	}
	return nil
}

// layout sorts the files, names them plainly and gives them their sectors.
func layout(contents map[string][]byte) ([]isoFile, int, error) {
	var files []isoFile
	taken := map[string]bool{}
	for name, content := range contents {
		plain := plainName(name)
		if len(name) > maxNameLength || taken[plain] {
			return nil, 0, fmt.Errorf("file name %q does not fit the disc", name)
		}
		taken[plain] = true
		files = append(files, isoFile{name: name, plain: plain, content: content})
	}
	slices.SortFunc(files, func(a, b isoFile) int { return strings.Compare(a.plain, b.plain) })
	next := sectorFiles
	for i := range files {
		files[i].sector = next
		next += (len(files[i].content) + sectorSize - 1) / sectorSize
	}
	return files, next, nil
}

// plainName is the name under pure ISO 9660: capitals, digits, underscores, one dot,
// a version.
func plainName(name string) string {
	base, extension, _ := strings.Cut(name, ".")
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			switch {
			case r >= 'a' && r <= 'z':
				return r - 'a' + 'A'
			case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
				return r
			default:
				return '_'
			}
		}, s)
	}
	return clean(base) + "." + clean(extension) + ";1"
}

// sector pads data to a whole sector.
func sector(data []byte) []byte {
	padded := make([]byte, sectorSize)
	copy(padded, data)
	return padded
}

// both encodes a number twice, as the format wants it: little endian, then big endian.
func both(n int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(n))
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

func both16(n int) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(n))
	return binary.BigEndian.AppendUint16(b, uint16(n))
}

// ucs2 encodes a Joliet name.
func ucs2(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, u)
	}
	return b
}

// recordDate is 1 January 2000, for every file of every disc.
var recordDate = []byte{100, 1, 1, 0, 0, 0, 0}

// record is one entry of a directory.
func record(identifier []byte, sector, size int, isDirectory bool, systemUse []byte) []byte {
	r := []byte{0, 0}
	r = append(r, both(sector)...)
	r = append(r, both(size)...)
	r = append(r, recordDate...)
	flags := byte(0)
	if isDirectory {
		flags = 2
	}
	r = append(r, flags, 0, 0)
	r = append(r, both16(1)...)
	r = append(r, byte(len(identifier)))
	r = append(r, identifier...)
	if len(r)%2 == 1 {
		r = append(r, 0)
	}
	r = append(r, systemUse...)
	if len(r)%2 == 1 {
		r = append(r, 0)
	}
	r[0] = byte(len(r))
	return r
}

// directory is the root directory in its primary or its Joliet form, one sector long.
func directory(files []isoFile, at int, joliet bool) ([]byte, error) {
	var self, parent []byte
	if !joliet {
		parent = posix(0o040555, 2)
		self = slices.Concat([]byte("SP\x07\x01\xbe\xef\x00"), parent, []byte("ER\x12\x01\x0a\x00\x00\x01RRIP_1991A"))
	}
	data := slices.Concat(record([]byte{0}, at, sectorSize, true, self), record([]byte{1}, at, sectorSize, true, parent))
	for _, f := range files {
		identifier, extra := []byte(f.plain), slices.Concat(posix(0o100444, 1), rockRidgeName(f.name))
		if joliet {
			identifier, extra = ucs2(f.name), nil
		}
		data = append(data, record(identifier, f.sector, len(f.content), false, extra)...)
	}
	if len(data) > sectorSize {
		return nil, fmt.Errorf("%d files do not fit the disc", len(files))
	}
	return sector(data), nil
}

// posix is Rock Ridge's PX: mode, links, owner 0, group 0.
func posix(mode, links int) []byte {
	return slices.Concat([]byte("PX\x24\x01"), both(mode), both(links), both(0), both(0))
}

// rockRidgeName is Rock Ridge's NM.
func rockRidgeName(name string) []byte {
	return slices.Concat([]byte{'N', 'M', byte(5 + len(name)), 1, 0}, []byte(name))
}

// pathTable is one of the four tables; each has the root directory only.
func pathTable(i int) []byte {
	at := sectorPrimaryDir
	if i >= 2 {
		at = sectorJolietDir
	}
	table := []byte{1, 0}
	if i%2 == 0 {
		table = binary.LittleEndian.AppendUint32(table, uint32(at))
		return append(table, 1, 0, 0, 0)
	}
	table = binary.BigEndian.AppendUint32(table, uint32(at))
	return append(table, 0, 1, 0, 0)
}

// volumeDescriptor describes the whole image, in its primary or Joliet form.
func volumeDescriptor(label string, sectors int, joliet bool) []byte {
	d := make([]byte, sectorSize)
	text := func(from, to int, s string) {
		field := []byte(s)
		fill := []byte(" ")
		if joliet {
			field, fill = ucs2(s), []byte{0, ' '}
		}
		for i := from; i < to; i++ {
			d[i] = fill[(i-from)%len(fill)]
		}
		copy(d[from:to], field)
	}
	kind, root, tables := byte(1), sectorPrimaryDir, sectorPathTables
	if joliet {
		kind, root, tables = 2, sectorJolietDir, sectorPathTables+2
	}
	copy(d, append([]byte{kind}, "CD001\x01"...))
	text(8, 40, "LINUX")
	text(40, 72, label)
	copy(d[80:], both(sectors))
	if joliet {
		copy(d[88:], "%/E") // UCS-2 level 3
	}
	copy(d[120:], both16(1))
	copy(d[124:], both16(1))
	copy(d[128:], both16(sectorSize))
	copy(d[132:], both(10)) // bytes of a path table
	binary.LittleEndian.PutUint32(d[140:], uint32(tables))
	binary.BigEndian.PutUint32(d[148:], uint32(tables+1))
	copy(d[156:], record([]byte{0}, root, sectorSize, true, nil))
	text(190, 813, "")
	for _, at := range []int{813, 830} { // created, modified
		copy(d[at:], "2000010100000000\x00")
	}
	for _, at := range []int{847, 864} { // expires, effective: not set
		copy(d[at:], "0000000000000000\x00")
	}
	d[881] = 1
	return d
}
