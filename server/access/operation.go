package access

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// Operation is the form that the schema gives to the events of an operation: a
// number, and one of operation, progress and result.
type Operation struct {
	event                                 protoreflect.MessageType
	sequence, begun, result, detach, wrap protoreflect.FieldDescriptor
}

// readOperation finds the form, or says what it lacks.
func readOperation(md protoreflect.MethodDescriptor) (*Operation, error) {
	out, fields := md.Output(), md.Output().Fields()
	o := &Operation{
		sequence: fields.ByName("sequence"), begun: fields.ByName("operation"), result: fields.ByName("result"),
		detach: md.Input().Fields().ByName("detach"),
	}
	var errs []error
	if o.sequence == nil || o.sequence.Kind() != protoreflect.Int64Kind {
		errs = append(errs, fmt.Errorf("%s needs an int64 sequence", out.Name()))
	}
	progress := fields.ByName("progress")
	for name, fd := range map[string]protoreflect.FieldDescriptor{"operation": o.begun, "progress": progress, "result": o.result} {
		if fd == nil || fd.Message() == nil || fd.ContainingOneof() == nil || fd.ContainingOneof().Name() != "event" {
			errs = append(errs, fmt.Errorf("%s needs a message %s in the oneof event", out.Name(), name))
		}
	}
	if o.begun != nil && (o.begun.Message() == nil || o.begun.Message().FullName() != (&brokerv1.Operation{}).ProtoReflect().Descriptor().FullName()) {
		errs = append(errs, fmt.Errorf("%s.operation must be an Operation", out.Name()))
	}
	if o.detach == nil || o.detach.Kind() != protoreflect.BoolKind {
		errs = append(errs, fmt.Errorf("%s needs a bool detach", md.Input().Name()))
	}
	all := (&brokerv1.OperationEvent{}).ProtoReflect().Descriptor().Fields()
	for i := range all.Len() {
		if all.Get(i).Message() != nil && all.Get(i).Message().FullName() == out.FullName() {
			o.wrap = all.Get(i)
		}
	}
	if o.wrap == nil {
		errs = append(errs, fmt.Errorf("OperationEvent has no %s", out.Name()))
	}
	var err error
	if o.event, err = protoregistry.GlobalTypes.FindMessageByName(out.FullName()); err != nil {
		errs = append(errs, err)
	}
	return o, errors.Join(errs...)
}

// Begun is the event that names the operation.
func (o *Operation) Begun(op *brokerv1.Operation) proto.Message {
	m := o.event.New()
	m.Set(o.begun, protoreflect.ValueOfMessage(op.ProtoReflect()))
	return m.Interface()
}

// Number numbers an event.
func (o *Operation) Number(event proto.Message, n int64) {
	event.ProtoReflect().Set(o.sequence, protoreflect.ValueOfInt64(n))
}

// IsResult reports whether the event is the result.
func (o *Operation) IsResult(event proto.Message) bool { return event.ProtoReflect().Has(o.result) }

// Decode reads a serialised event.
func (o *Operation) Decode(data []byte) (proto.Message, error) {
	m := o.event.New().Interface()
	return m, proto.Unmarshal(data, m)
}

// Wrap puts an event into the form that is common to all operations.
func (o *Operation) Wrap(event proto.Message) *brokerv1.OperationEvent {
	w := &brokerv1.OperationEvent{}
	w.ProtoReflect().Set(o.wrap, protoreflect.ValueOfMessage(event.ProtoReflect()))
	return w
}

// Detach reports whether a request asks to detach.
func (o *Operation) Detach(req proto.Message) bool { return req.ProtoReflect().Get(o.detach).Bool() }

// Attached is the request without its wish to detach, which is no part of what
// is asked for.
func (o *Operation) Attached(req proto.Message) proto.Message {
	req = proto.Clone(req)
	req.ProtoReflect().Clear(o.detach)
	return req
}
