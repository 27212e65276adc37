package access

import (
	"encoding/json"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// maxRecorded bounds one recorded string, and maxItems a list, so that a request of the largest
// allowed size does not fill the audit trail.
const (
	maxRecorded = 512
	maxItems    = 16 // Of a list.
)

// Redacted is a request as JSON for the audit trail: the fields that are set and
// declared AUDIT_CLASS_RECORD with their values, every other field that is set
// as "[redacted]".
func Redacted(req proto.Message) json.RawMessage {
	b := append(make([]byte, 0, 128), '{')
	req.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = strconv.AppendQuote(b, string(fd.Name()))
		b = append(b, ':')
		switch {
		case !recorded(fd):
			b = append(b, `"[redacted]"`...)
		case fd.IsList():
			b = append(b, '[')
			for i := range v.List().Len() {
				if i == maxItems {
					b = append(b, `,"[cut]"`...)
					break
				}
				if i > 0 {
					b = append(b, ',')
				}
				b = appendValue(b, fd, v.List().Get(i))
			}
			b = append(b, ']')
		default:
			b = appendValue(b, fd, v)
		}
		return true
	})
	return append(b, '}')
}

func recorded(fd protoreflect.FieldDescriptor) bool {
	if fd.IsMap() {
		return false
	}
	return proto.GetExtension(fd.Options(), brokerv1.E_Audit).(brokerv1.AuditClass) == brokerv1.AuditClass_AUDIT_CLASS_RECORD
}

func appendValue(b []byte, fd protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return strconv.AppendBool(b, v.Bool())
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		return strconv.AppendInt(b, v.Int(), 10)
	case protoreflect.EnumKind:
		if d := fd.Enum().Values().ByNumber(v.Enum()); d != nil {
			return strconv.AppendQuote(b, string(d.Name()))
		}
		return strconv.AppendInt(b, int64(v.Enum()), 10)
	case protoreflect.StringKind:
		s := v.String()
		if len(s) > maxRecorded {
			s = s[:maxRecorded] + "[cut]"
		}
		q, _ := json.Marshal(s) // A string always marshals.
		return append(b, q...)
	case protoreflect.MessageKind:
		switch m := v.Message().Interface().(type) {
		case *timestamppb.Timestamp:
			return strconv.AppendQuote(b, m.AsTime().Format(time.RFC3339Nano))
		case *durationpb.Duration:
			return strconv.AppendQuote(b, m.AsDuration().String())
		}
	}
	// A kind that no request has yet: left out until somebody decides.
	return append(b, `"[redacted]"`...)
}
