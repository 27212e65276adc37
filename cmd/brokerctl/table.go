package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gortium/hermes-broker/internal/termclean"
)

// colour is the parameter of an SGR sequence.
type colour int

const (
	plain  colour = 0
	bold   colour = 1
	red    colour = 31
	green  colour = 32
	yellow colour = 33
)

type cell struct {
	text   string
	colour colour
}

// table aligns cells in columns. Text enters it only through add and addCells,
// which clean it.
type table struct {
	painted   bool
	overwrite bool // take the place of the line above; for a terminal
	rows      [][]cell
}

// newTable begins a table with a header, or without one.
func (a *app) newTable(header ...string) *table {
	t := &table{painted: a.colour}
	if len(header) > 0 {
		t.addCells(cells(bold, header...)...)
	}
	return t
}

func cells(c colour, texts ...string) (row []cell) {
	for _, s := range texts {
		row = append(row, cell{s, c})
	}
	return row
}

func (t *table) add(texts ...string) { t.addCells(cells(plain, texts...)...) }

func (t *table) addCells(row ...cell) {
	for i := range row {
		row[i].text = termclean.String(row[i].text)
		if row[i].text == "" {
			row[i].text = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// field adds a row that has a name instead of a header.
func (t *table) field(name, value string) { t.addCells(cell{name + ":", bold}, cell{value, plain}) }

// write prints the rows with two spaces between columns and none at the end of
// a line.
func (t *table) write(w io.Writer) error {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	out := bufio.NewWriter(w)
	if t.overwrite {
		out.WriteString("\x1b[1A\x1b[2K")
	}
	for _, row := range t.rows {
		for i, c := range row {
			out.WriteString(paint(t.painted, c.colour, c.text))
			if i < len(row)-1 {
				out.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		out.WriteByte('\n')
	}
	return out.Flush()
}

// sentence is a table that is one line.
func (a *app) sentence(c colour, format string, args ...any) *table {
	t := a.newTable()
	t.addCells(cell{fmt.Sprintf(format, args...), c})
	return t
}

// paint colours clean text.
func paint(painted bool, c colour, text string) string {
	if !painted || c == plain {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text)
}

// writeTables prints tables with a blank line between.
func writeTables(w io.Writer, tables ...*table) error {
	for i, t := range tables {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		if err := t.write(w); err != nil {
			return err
		}
	}
	return nil
}

// shortDuration gives a duration in its largest unit or two: 3d4h, 12m, 1.5s.
func shortDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + shortDuration(-d)
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	default:
		return d.Round(time.Millisecond).String()
	}
}

// shortTime gives a time for people, in their zone; "" when it is not set.
func shortTime(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.RFC3339)
}

// age is how long ago t was.
func age(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return shortDuration(time.Since(t.AsTime()).Truncate(time.Second))
}

// bytesText gives a size as docker does, in decimal or binary thousands.
func bytesText(n uint64, base float64, units ...string) string {
	size := float64(n)
	i := 0
	for ; size >= base && i < len(units)-1; i++ {
		size /= base
	}
	return fmt.Sprintf("%.4g%s", size, units[i])
}

func binarySize(n uint64) string {
	return bytesText(n, 1024, "B", "KiB", "MiB", "GiB", "TiB", "PiB")
}
func decimalSize(n uint64) string { return bytesText(n, 1000, "B", "kB", "MB", "GB", "TB", "PB") }

// shortID is the beginning of an ID that people compare.
func shortID(id string) string { return id[:min(12, len(id))] }

// enumText gives an enum value as a word: CONTAINER_STATE_RUNNING is "running".
func enumText(value fmt.Stringer, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(value.String(), prefix)), "_", "-")
}

// knownText is enumText, and nothing for a value that says nothing.
func knownText[E enum](value E, prefix string) string {
	if value == 0 {
		return ""
	}
	return enumText(value, prefix)
}
