// Package access reads what every method declares of itself: permission, effect
// and resource.
//
// It is the only reader of the schema's options. Load refuses a service with a
// method that declares nothing, or something that makes no sense, and so does
// brokerd: an RPC that nobody thought about cannot be served.
package access

import (
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/imageref"
)

// Effect is what a call does to the host.
type Effect = brokerv1.Effect

// The effects.
const (
	Read    = brokerv1.Effect_EFFECT_READ
	Change  = brokerv1.Effect_EFFECT_CHANGE
	Destroy = brokerv1.Effect_EFFECT_DESTROY
)

// Nouns are the words by which policies and audit records call the kinds of
// resource. A resource is "<noun>/<name>", or the noun alone for the collection.
var Nouns = map[brokerv1.Kind]string{
	brokerv1.Kind_KIND_BROKER:    "broker",
	brokerv1.Kind_KIND_CONTAINER: "containers",
	brokerv1.Kind_KIND_IMAGE:     "images",
	brokerv1.Kind_KIND_ENGINE:    "engine",
	brokerv1.Kind_KIND_NETWORK:   "networks",
	brokerv1.Kind_KIND_VOLUME:    "volumes",
	brokerv1.Kind_KIND_OPERATION: "operations",
	brokerv1.Kind_KIND_FIREWALL:  "firewall",
	brokerv1.Kind_KIND_JAIL:      "jails",
	brokerv1.Kind_KIND_JOURNAL:   "journal",
	brokerv1.Kind_KIND_SSH:       "ssh",
	brokerv1.Kind_KIND_SOCKET:    "sockets",
}

// Single are the nouns of which there is one thing only: it has no name.
var Single = map[string]bool{"broker": true, "engine": true, "firewall": true, "ssh": true, "sockets": true}

// canonical writes names out in full, for the kinds whose things have more than
// one spelling or a grammar of the broker's own. A decision is about the result.
var canonical = map[string]func(name string) (string, error){
	"images": func(name string) (string, error) {
		if imageID.MatchString(name) { // An image without a reference.
			return name, nil
		}
		ref, err := imageref.Parse(name)
		return ref.String(), err
	},
	"operations": func(name string) (string, error) {
		id, ok := strings.CutPrefix(name, "operations/")
		if !ok || !operationID.MatchString(id) {
			return "", errors.New(`give the name of an operation, "operations/" and its ID, as ListOperations shows it`)
		}
		return id, nil
	},
	"jails": func(name string) (string, error) {
		if !jail.MatchString(name) {
			return "", errors.New("give a jail's name, as Fail2banStatus shows it: 1 to 64 of a-z, A-Z, 0-9, _, . and -, the first a letter or digit")
		}
		return name, nil
	},
	"journal": func(name string) (string, error) {
		kind, of, _ := strings.Cut(name, "/")
		switch {
		case name == "kernel", kind == "units" && unit.MatchString(of), kind == "identifiers" && identifier.MatchString(of):
			return name, nil
		case kind == "units" && unit.MatchString(of+".service"):
			return "", errors.New("give the unit's full name, such as units/" + of + ".service; slices are no sources")
		}
		return "", errors.New("give kernel, units/ and a unit's full name such as units/ssh.service, or identifiers/ and a name such as identifiers/sudo")
	},
}

var (
	imageID     = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	operationID = regexp.MustCompile(`^[A-Z2-7]{26}$`)
	jail        = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)
	unit        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9:_.@\\-]{0,243}\.(service|socket|target|timer|mount|automount|swap|path|scope|device)$`)
	identifier  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9:_.@/+()-]{0,127}$`)
)

// Method is one method's declaration.
type Method struct {
	// Name is the full method: "/hermes.broker.v1.ContainerService/Restart".
	Name string
	// Permission is what a grant must name.
	Permission string
	// Effect is what the call does.
	Effect Effect
	// Noun is the kind of resource, in a policy's words.
	Noun string
	// Deadline is the broker's own deadline; 0 means the configured default.
	Deadline time.Duration
	// WhileFrozen marks a change that works during a freeze.
	WhileFrozen bool
	// Stream marks a method that streams its answers.
	Stream bool
	// Others is the further permission that a call on another caller's object
	// needs, or "".
	Others string
	// Operation is the form of the events of a call that is an operation; nil for
	// all others.
	Operation *Operation

	field      protoreflect.FieldDescriptor // Of the resource's name; nil for a collection.
	conditions []condition
	input      protoreflect.MessageDescriptor
}

type condition struct {
	field      protoreflect.FieldDescriptor
	permission string
}

// Short is the method without its package: "ContainerService/Restart".
func (m *Method) Short() string { return m.Name[strings.LastIndex(m.Name, ".")+1:] }

// Changes reports whether the call changes anything.
func (m *Method) Changes() bool { return m.Effect != Read }

// Collection reports whether the call is on all resources of its kind.
func (m *Method) Collection() bool { return m.field == nil }

// ResourceField is the request field that names the resource, or "".
func (m *Method) ResourceField() string {
	if m.field == nil {
		return ""
	}
	return string(m.field.Name())
}

// Permissions are all permissions the method can ask for, its own first.
func (m *Method) Permissions() []string {
	all := []string{m.Permission}
	for _, c := range m.conditions {
		all = append(all, c.permission)
	}
	if m.Others != "" {
		all = append(all, m.Others)
	}
	return all
}

// Resource is what a request acts on: "containers/db", or the noun alone. With
// an error, which says how the name would be right, it is the noun alone.
func (m *Method) Resource(req proto.Message) (string, error) {
	if m.field == nil {
		return m.Noun, nil
	}
	return m.Called(req.ProtoReflect().Get(m.field).String())
}

// Called is the resource that goes by a name, as Resource gives it.
func (m *Method) Called(name string) (string, error) {
	if write := canonical[m.Noun]; write != nil {
		var err error
		if name, err = write(name); err != nil {
			return m.Noun, err
		}
	}
	return m.Noun + "/" + name, nil
}

// Needs calls yield with each permission that a request needs, until it says
// false.
func (m *Method) Needs(req proto.Message) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		if !yield(m.Permission) {
			return
		}
		for _, c := range m.conditions {
			if req.ProtoReflect().Get(c.field).Bool() && !yield(c.permission) {
				return
			}
		}
	}
}

// Registry is every method that is served.
type Registry struct {
	methods     map[string]*Method
	permissions map[string]string  // To the noun of their kind.
	asking      map[string]*Method // By permission.
}

// health is declared here because its schema is not ours. Its calls are open to
// callers with a grant of broker.health.
var health = []*Method{
	{Name: "/grpc.health.v1.Health/Check", Permission: "broker.health", Effect: Read, Noun: "broker"},
	{Name: "/grpc.health.v1.Health/List", Permission: "broker.health", Effect: Read, Noun: "broker"},
	{Name: "/grpc.health.v1.Health/Watch", Permission: "broker.health", Effect: Read, Noun: "broker", Stream: true},
}

// Load reads the declarations of every registered method, and fails, naming
// every fault, when one is missing or makes no sense.
func Load(services map[string]grpc.ServiceInfo) (*Registry, error) {
	r := &Registry{methods: map[string]*Method{}, permissions: map[string]string{}, asking: map[string]*Method{}}
	var errs []error
	for service := range services {
		if service == "grpc.health.v1.Health" {
			for _, m := range health {
				errs = append(errs, r.add(m))
			}
			continue
		}
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", service, err))
			continue
		}
		errs = append(errs, r.addService(d.(protoreflect.ServiceDescriptor)))
	}
	return r, errors.Join(errs...)
}

func (r *Registry) addService(sd protoreflect.ServiceDescriptor) error {
	var errs []error
	for i := range sd.Methods().Len() {
		md := sd.Methods().Get(i)
		m, err := read(md)
		if err == nil {
			err = r.add(m)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", md.FullName(), err))
		}
	}
	return errors.Join(errs...)
}

// add also sees to it that a permission means one kind of resource only, so that
// a policy's patterns can be checked against it.
func (r *Registry) add(m *Method) error {
	for _, p := range m.Permissions() {
		if noun, ok := r.permissions[p]; ok && noun != m.Noun {
			return fmt.Errorf("permission %q is declared for %s and for %s", p, noun, m.Noun)
		}
		r.permissions[p] = m.Noun
		r.asking[p] = m
	}
	r.methods[m.Name] = m
	return nil
}

// Method is the declaration of a full method name, or nil.
func (r *Registry) Method(name string) *Method { return r.methods[name] }

// Asking is a method that asks for the permission, or nil.
func (r *Registry) Asking(permission string) *Method { return r.asking[permission] }

// Methods are all declarations, by name.
func (r *Registry) Methods() []*Method {
	all := make([]*Method, 0, len(r.methods))
	for _, m := range r.methods {
		all = append(all, m)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}

// Permissions is every permission, with the noun of its kind of resource: the
// vocabulary of a policy.
func (r *Registry) Permissions() map[string]string { return r.permissions }

var permissionSyntax = regexp.MustCompile(`^[a-z]+\.[a-z]+(_[a-z]+)*$`)

// read reads one method's option.
func read(md protoreflect.MethodDescriptor) (*Method, error) {
	if !proto.HasExtension(md.Options(), brokerv1.E_Access) {
		return nil, errors.New("declares no access: add option (hermes.broker.v1.access)")
	}
	a := proto.GetExtension(md.Options(), brokerv1.E_Access).(*brokerv1.Access)
	m := &Method{
		Name:        "/" + string(md.Parent().FullName()) + "/" + string(md.Name()),
		Permission:  a.GetPermission(),
		Effect:      a.GetEffect(),
		Noun:        Nouns[a.GetResource().GetKind()],
		Deadline:    a.GetDeadline().AsDuration(),
		WhileFrozen: a.GetWhileFrozen(),
		Stream:      md.IsStreamingServer(),
		Others:      a.GetOthersPermission(),
		input:       md.Input(),
	}
	fields := md.Input().Fields()
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if m.Effect < Read || m.Effect > Destroy {
		fail("effect is %v: declare READ, CHANGE or DESTROY", m.Effect)
	}
	if m.Noun == "" {
		fail("resource kind is %v: declare one that package access has a noun for", a.GetResource().GetKind())
	}
	if name := a.GetResource().GetField(); name != "" {
		m.field = fields.ByName(protoreflect.Name(name))
		if m.field == nil || m.field.Kind() != protoreflect.StringKind || m.field.IsList() {
			fail("resource field %q is no string field of %s", name, md.Input().Name())
		}
	} else if m.Changes() && !Single[m.Noun] {
		fail("a change must name its resource field")
	}
	for _, c := range a.GetConditions() {
		fd := fields.ByName(protoreflect.Name(c.GetField()))
		if fd == nil || fd.Kind() != protoreflect.BoolKind || fd.IsList() {
			fail("condition field %q is no bool field of %s", c.GetField(), md.Input().Name())
		}
		m.conditions = append(m.conditions, condition{fd, c.GetPermission()})
	}
	for _, p := range m.Permissions() {
		if !permissionSyntax.MatchString(p) {
			fail("permission %q is not of the form noun.verb", p)
		} else if noun, _, _ := strings.Cut(p, "."); noun != m.Noun {
			fail("permission %q does not begin with its resource's noun, %q", p, m.Noun)
		}
	}
	if md.IsStreamingClient() {
		fail("streams its requests: the chain decides on one request")
	}
	if m.Changes() {
		if fd := fields.ByName("request_id"); fd == nil || fd.Kind() != protoreflect.StringKind {
			fail("changes something and has no string request_id")
		}
		if fd := fields.ByName("validate_only"); fd == nil || fd.Kind() != protoreflect.BoolKind {
			fail("changes something and has no bool validate_only")
		}
		if m.Stream {
			var err error
			if m.Operation, err = readOperation(md); err != nil {
				fail("changes something and streams, so it begins an operation: %w", err)
			}
		}
	}
	return m, errors.Join(errs...)
}
