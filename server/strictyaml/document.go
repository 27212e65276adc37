package strictyaml

import (
	"bytes"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// parse returns the root of the only document in data, or nil when there is
// none to decode.
func (d *decoder) parse(data []byte) ast.Node {
	if len(data) > MaxSize {
		d.add(Pos{}, "larger than %d bytes", MaxSize)
		return nil
	}
	if lines := bytes.Count(data, []byte("\n")); lines > MaxLines {
		d.add(Pos{}, "more than %d lines", MaxLines)
		return nil
	}
	if !d.checkText(data) {
		return nil
	}
	tokens := lexer.Tokenize(string(data))
	if !d.checkTokens(tokens) {
		return nil
	}
	// Duplicate keys are found in the decoder: the parser would stop at the first.
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.addSyntaxError(err)
		return nil
	}
	return d.onlyDocument(file.Docs)
}

// checkText refuses bytes that are not text: they would make columns
// meaningless and could hide something from whoever reads the file.
func (d *decoder) checkText(data []byte) bool {
	pos := Pos{Line: 1, Column: 1}
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && size == 1:
			d.add(pos, "not UTF-8")
			return false
		case r == '\ufeff':
			d.add(pos, "contains a byte order mark: save the file as UTF-8 without it")
			return false
		case r == '\r' && !bytes.HasPrefix(data, []byte("\r\n")):
			d.add(pos, "contains a carriage return without a line feed")
			return false
		case unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t':
			d.add(pos, "contains the control character %U", r)
			return false
		}
		pos.Column++
		if r == '\n' {
			pos = Pos{Line: pos.Line + 1, Column: 1}
		}
		data = data[size:]
	}
	return true
}

// refusedTokens are the parts of YAML that make a text mean something other
// than what it shows.
var refusedTokens = map[token.Type]string{
	token.AnchorType:     "anchors (&) are not supported: write the value out",
	token.AliasType:      "aliases (*) are not supported: write the value out, or quote a string that begins with *",
	token.MergeKeyType:   "merge keys (<<) are not supported: write the keys out",
	token.TagType:        "tags (!) are not supported: remove it, or quote a string that begins with !",
	token.DirectiveType:  "directives (%) are not supported: remove the line",
	token.MappingKeyType: "complex keys (?) are not supported: write \"key: value\"",
}

// checkTokens refuses what the file may not contain, and bounds what the parser
// recurses on (nesting, and each key of a block mapping) before it runs: running out
// of stack cannot be recovered from. It returns false when the parser must not
// see the tokens.
func (d *decoder) checkTokens(tokens token.Tokens) bool {
	var block blockDepth
	flow, entries := 0, 0
	for _, t := range tokens {
		if why, ok := refusedTokens[t.Type]; ok {
			d.add(tokenPos(t), "%s", why)
			if d.full() {
				return false
			}
		}
		isKey := t.Next != nil && t.Next.Type == token.MappingValueType
		switch t.Type {
		case token.MappingValueType, token.SequenceEntryType, token.CollectEntryType:
			entries++
		}
		switch {
		case t.Type == token.SequenceStartType, t.Type == token.MappingStartType:
			flow++
		case t.Type == token.SequenceEndType, t.Type == token.MappingEndType:
			flow = max(0, flow-1)
		case t.Type == token.SequenceEntryType, isKey && flow == 0:
			block.open(t)
		}
		if len(block)+flow > MaxDepth {
			d.add(tokenPos(t), "nested deeper than %d levels", MaxDepth)
			return false
		}
		if entries > MaxEntries {
			d.add(tokenPos(t), "more than %d keys and list items", MaxEntries)
			return false
		}
	}
	return true
}

// blockDepth is the stack of block collections around a token. Of a collection
// it holds the token that opened its last entry.
type blockDepth []*token.Token

// open notes that t begins an entry of a block collection. Collections nest by
// column; a list may begin in the column of the key that it is the value of.
func (b *blockDepth) open(t *token.Token) {
	isItem := t.Type == token.SequenceEntryType
	column := t.Position.Column
	for n := len(*b); n > 0; n = len(*b) {
		last := (*b)[n-1]
		lastIsItem := last.Type == token.SequenceEntryType
		inside := last.Position.Column < column ||
			last.Position.Column == column && isItem && !lastIsItem
		if inside {
			break
		}
		*b = (*b)[:n-1]
	}
	*b = append(*b, t)
}

// onlyDocument returns the body of the first document, and reports it when that
// is empty or not the only one.
func (d *decoder) onlyDocument(docs []*ast.DocumentNode) ast.Node {
	var body ast.Node
	seen := 0
	for _, doc := range docs {
		if _, ok := doc.Body.(*ast.DirectiveNode); ok {
			continue // reported by checkTokens
		}
		seen++
		switch seen {
		case 1:
			body = doc.Body
		case 2:
			pos := Pos{}
			if doc.Start != nil {
				pos = tokenPos(doc.Start)
			} else if doc.Body != nil {
				pos = nodePos(doc.Body)
			}
			d.add(pos, "a second document: only one is allowed in a file")
		}
	}
	if body == nil || body.Type() == ast.NullType {
		d.add(Pos{}, "empty: there is no configuration in it")
		return nil
	}
	return body
}

// addSyntaxError reports an error of the parser.
func (d *decoder) addSyntaxError(err error) {
	var syntax interface {
		GetMessage() string
		GetToken() *token.Token
	}
	if !errors.As(err, &syntax) {
		d.add(Pos{}, "not valid YAML: %s", oneLine(err.Error()))
		return
	}
	message := oneLine(syntax.GetMessage())
	if strings.Contains(syntax.GetMessage(), "'\t'") {
		message = "a tab cannot be used here: indent with spaces"
	}
	d.add(tokenPos(syntax.GetToken()), "not valid YAML: %s", message)
}

// nodePos returns the place where n begins.
func nodePos(n ast.Node) Pos {
	switch n := n.(type) {
	case *ast.MappingNode:
		// The token of a block mapping is the colon of its first pair.
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return nodePos(n.Values[0])
		}
	case *ast.MappingValueNode:
		return nodePos(n.Key)
	}
	return tokenPos(n.GetToken())
}

func tokenPos(t *token.Token) Pos {
	if t == nil || t.Position == nil {
		return Pos{}
	}
	return Pos{Line: t.Position.Line, Column: t.Position.Column}
}

// oneLine makes foreign text fit for one line of a message.
func oneLine(s string) string {
	const limit = 200 // bytes
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	}), " ")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}
