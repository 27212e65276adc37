// Command rpcdoc writes docs/rpc.md: every method with what it needs, out of
// the schema's comments and the declarations that brokerd itself reads.
package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/gortium/hermes-broker/server"
	"github.com/gortium/hermes-broker/server/access"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "rpcdoc:", err)
		os.Exit(1)
	}
}

func run(in, out string) error {
	data, err := os.ReadFile(in)
	if err != nil {
		return err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(data, &set); err != nil {
		return err
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return err
	}
	methods, err := server.Methods()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString("# Methods\n\nEvery method of the broker, and what it needs. Made from the schema by `make generate`.\n\n" +
		"| method | permission | effect | resource |\n| --- | --- | --- | --- |\n")
	for _, m := range methods.Methods() {
		resource := m.Noun
		if f := m.ResourceField(); f != "" {
			resource += "/{" + f + "}"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | `%s` |\n", strings.TrimPrefix(m.Name, "/"), "`"+strings.Join(m.Permissions(), "`, `")+"`", effect(m), resource)
	}
	var services []protoreflect.ServiceDescriptor
	files.RangeFilesByPackage("hermes.broker.v1", func(fd protoreflect.FileDescriptor) bool {
		for i := range fd.Services().Len() {
			services = append(services, fd.Services().Get(i))
		}
		return true
	})
	slices.SortFunc(services, func(a, b protoreflect.ServiceDescriptor) int {
		return strings.Compare(string(a.Name()), string(b.Name()))
	})
	for _, sd := range services {
		describe(&b, sd)
	}
	return os.WriteFile(out, b.Bytes(), 0o644)
}

func effect(m *access.Method) string {
	return strings.TrimPrefix(m.Effect.String(), "EFFECT_")
}

func describe(b *bytes.Buffer, sd protoreflect.ServiceDescriptor) {
	fmt.Fprintf(b, "\n## %s\n\n%s\n", sd.Name(), comment(sd))
	for i := range sd.Methods().Len() {
		md := sd.Methods().Get(i)
		stream := ""
		if md.IsStreamingServer() {
			stream = "stream "
		}
		fmt.Fprintf(b, "\n### %s\n\n`%s(%s) returns (%s%s)`\n\n%s\n\n", md.Name(), md.Name(), md.Input().Name(), stream, md.Output().Name(), comment(md))
		for j := range md.Input().Fields().Len() {
			fd := md.Input().Fields().Get(j)
			fmt.Fprintf(b, "- `%s`: %s\n", fd.Name(), comment(fd))
		}
	}
}

// comment is a declaration's leading comment as one paragraph each.
func comment(d protoreflect.Descriptor) string {
	text := d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments
	var paragraphs []string
	for _, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		paragraphs = append(paragraphs, strings.Join(strings.Fields(p), " "))
	}
	return strings.Join(paragraphs, "\n\n")
}
