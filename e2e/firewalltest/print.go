package firewalltest

import (
	"strings"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// PrintIptables writes a rule as iptables-save does, out of all its fields but the
// one that holds just that.
func PrintIptables(r *brokerv1.FirewallRule) string {
	words := []string{"-A", r.GetChain()}
	for _, o := range []struct{ name, value string }{
		{"-s", r.GetSource()}, {"-d", r.GetDestination()}, {"-i", r.GetInInterface()}, {"-o", r.GetOutInterface()}, {"-p", r.GetProtocol()},
	} {
		words = append(words, option(o.name, o.value)...)
	}
	matches := r.GetMatches()
	if len(matches) > 0 && matches[0].GetName() == "fragment" {
		words, matches = append(words, matches[0].GetText()), matches[1:]
	}
	words, matches = ports(r, words, matches)
	commented := false
	for _, m := range matches {
		words = append(words, "-m", m.GetName())
		if m.GetText() != "" {
			words = append(words, m.GetText())
		}
		commented = commented || m.GetName() == "comment"
	}
	if r.GetComment() != "" && !commented {
		words = append(words, "-m", "comment", "--comment", quote(r.GetComment()))
	}
	if r.GetTarget() != "" {
		words = append(words, map[bool]string{false: "-j", true: "-g"}[r.GetGotoTarget()], r.GetTarget())
	}
	if r.GetTargetOptions() != "" {
		words = append(words, r.GetTargetOptions())
	}
	return strings.Join(words, " ")
}

func option(name, value string) []string {
	positive, negated := strings.CutPrefix(value, "! ")
	switch {
	case value == "":
		return nil
	case negated:
		return []string{"!", name, positive}
	}
	return []string{name, value}
}

// ports writes the module that the fields of ports come from, unless it is among
// the conditions with its ports.
func ports(r *brokerv1.FirewallRule, words []string, matches []*brokerv1.FirewallMatch) ([]string, []*brokerv1.FirewallMatch) {
	module, s := r.GetProtocol(), ""
	if strings.Contains(r.GetSourcePorts()+r.GetDestinationPorts(), ",") {
		module, s = "multiport", "s"
	}
	var mine []string
	for _, o := range [][]string{option("--sport"+s, r.GetSourcePorts()), option("--dport"+s, r.GetDestinationPorts())} {
		if !said(matches, o) {
			mine = append(mine, o...)
		}
	}
	if len(mine) == 0 {
		return words, matches
	}
	words = append(append(words, "-m", module), mine...)
	if len(matches) > 0 && matches[0].GetName() == module && !strings.Contains(matches[0].GetText(), "port") {
		words, matches = append(words, matches[0].GetText()), matches[1:]
	}
	return words, matches
}

// said reports whether a condition has the option, in its form for one port or for
// several.
func said(matches []*brokerv1.FirewallMatch, option []string) bool {
	if len(option) == 0 {
		return true
	}
	value := option[len(option)-1]
	name := strings.TrimSuffix(option[len(option)-2], "s")
	for _, m := range matches {
		text := " " + m.GetText() + " "
		if strings.Contains(text, " "+name+" "+value+" ") || strings.Contains(text, " "+name+"s "+value+" ") {
			return true
		}
	}
	return false
}

// quote writes a text as iptables does: in quotes, unless it has letters, digits,
// "_" and "-" alone.
func quote(text string) string {
	if strings.Trim(text, "_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == "" && text != "" {
		return text
	}
	return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, `'`, `\'`).Replace(text) + `"`
}
