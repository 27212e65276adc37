// Package api_test holds the schema to the promise that nothing dangerous can
// be said in it.
package api_test

import (
	"regexp"
	"slices"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/gortium/hermes-broker/api/brokerv1"
)

// freeText are all fields of requests that hold text or bytes, with the reason
// why each can carry no command, path, specification or archive. A new one is
// added together with its reason, by somebody who has thought about it.
var freeText = map[string]string{
	"InspectContainerRequest.container":   "a name by the engine's grammar, compared with the name of the object found",
	"ContainerLogsRequest.container":      "as InspectContainerRequest.container",
	"ContainerStatsRequest.container":     "as InspectContainerRequest.container",
	"StartRequest.container":              "as InspectContainerRequest.container",
	"StopRequest.container":               "as InspectContainerRequest.container",
	"RestartRequest.container":            "as InspectContainerRequest.container",
	"RemoveRequest.container":             "as InspectContainerRequest.container",
	"RemoveRequest.expected_id":           "compared with the ID of the object found",
	"WaitRequest.container":               "as InspectContainerRequest.container",
	"ListContainersRequest.name_pattern":  "matched in the broker against names the caller may see; never sent to the engine",
	"ListContainersRequest.page_token":    "parsed into a position; never sent to the engine",
	"CanRequest.permission":               "looked up among the declared permissions",
	"CanRequest.resource":                 "matched against the policy; never sent to the engine",
	"FreezeRequest.caller":                "must be a caller of the policy",
	"FreezeRequest.reason":                "shown and recorded, never interpreted",
	"UnfreezeRequest.caller":              "a key of the freezes in force",
	"StartRequest.request_id":             "a canonical UUID, a key of the record of requests",
	"StopRequest.request_id":              "as StartRequest.request_id",
	"RestartRequest.request_id":           "as StartRequest.request_id",
	"RemoveRequest.request_id":            "as StartRequest.request_id",
	"FreezeRequest.request_id":            "as StartRequest.request_id",
	"UnfreezeRequest.request_id":          "as StartRequest.request_id",
	"ListImagesRequest.reference_pattern": "matched in the broker against references the caller may see; never sent to the engine",
	"ListImagesRequest.page_token":        "as ListContainersRequest.page_token",
	"PullRequest.image":                   "parsed and written out in full; only that form is sent to the engine, through a pattern of its own",
	"PullRequest.request_id":              "as StartRequest.request_id",
	"RemoveImageRequest.image":            "as PullRequest.image",
	"RemoveImageRequest.expected_id":      "compared with the ID of the object found",
	"RemoveImageRequest.request_id":       "as StartRequest.request_id",
	"PruneRequest.request_id":             "as StartRequest.request_id",
	"PruneRequest.expected_plan":          "compared with the fingerprint of what was found",
	"ListNetworksRequest.name_pattern":    "as ListContainersRequest.name_pattern",
	"ListNetworksRequest.page_token":      "as ListContainersRequest.page_token",
	"ListVolumesRequest.name_pattern":     "as ListContainersRequest.name_pattern",
	"ListVolumesRequest.page_token":       "as ListContainersRequest.page_token",
	"ListOperationsRequest.page_token":    "as ListContainersRequest.page_token",
	"GetOperationRequest.name":            "by a grammar, then a key of the operations that are kept",
	"WatchOperationRequest.name":          "as GetOperationRequest.name",
	"CancelOperationRequest.name":         "as GetOperationRequest.name",
	"CancelOperationRequest.request_id":   "as StartRequest.request_id",
	"FirewallStatusRequest.table":         "compared with the names of tables in the answer; never sent to a tool",
	"FirewallStatusRequest.chain":         "as FirewallStatusRequest.table",
	"FirewallStatusRequest.page_token":    "as ListContainersRequest.page_token",
	"GetJailRequest.jail":                 "by a grammar, and one of the names that fail2ban lists; a string of its own in a fixed question",
	"ListBannedRequest.jail":              "as GetJailRequest.jail",
	"ListBannedRequest.page_token":        "as ListContainersRequest.page_token",
	"ReadJournalRequest.source":           "by a grammar, which brokerhost applies once more; one argument behind an option's equal sign",
	"ReadJournalRequest.contains":         "searched for in the broker; never sent to a tool",
	"ReadJournalRequest.matches":          "compiled and searched for in the broker, in linear time; never sent to a tool",
	"ReadJournalRequest.cursor":           "as ReadJournalRequest.source",
	"ListeningSocketsRequest.page_token":  "as ListContainersRequest.page_token",
}

// shown are all text and bytes fields of responses that hold what is not the
// broker's own, with the reason why each may be shown. The others hold names,
// identifiers and times.
var shown = map[string]string{
	"LogEntry.stdout":                           "the container's output, redacted; the permission is about this",
	"LogEntry.stderr":                           "the container's output, redacted; the permission is about this",
	"Container.labels":                          "only keys on the operator's list",
	"Container.state_text":                      "one word of the engine",
	"Container.image":                           "the reference it was created from",
	"Mount.source":                              "only with the permission containers.inspect_mount_sources",
	"Mount.destination":                         "a path inside the container",
	"InspectContainerResponse.environment_keys": "names; values are never read",
	"InfoResponse.operating_system":             "the name of a distribution",
	"InfoResponse.security_options":             "names alone; a profile's path is cut off",
	"InfoResponse.default_runtime":              "the name of a runtime",
	"EventsResponse.action_text":                "the engine's word up to the first colon, of a-z, _ and -",
	"Operation.error_message":                   "what the operation's caller was told: words of the broker",
	"PrunedItem.problem":                        "words of the broker",
	"FirewallSource.problem":                    "words of the broker",
	"FirewallChain.hook":                        "one word of the kernel",
	"FirewallChain.policy":                      "one word of the kernel",
	"FirewallRule.source":                       "addresses; the permission is about the rules",
	"FirewallRule.destination":                  "as FirewallRule.source",
	"FirewallRule.in_interface":                 "as FirewallRule.source",
	"FirewallRule.out_interface":                "as FirewallRule.source",
	"FirewallRule.source_ports":                 "as FirewallRule.source",
	"FirewallRule.destination_ports":            "as FirewallRule.source",
	"FirewallRule.target_options":               "as FirewallRule.source",
	"FirewallRule.comment":                      "what an administrator or a program wrote to whoever reads the rules",
	"FirewallRule.text":                         "the rule; the permission is about this",
	"FirewallMatch.text":                        "as FirewallRule.text",
	"FirewallSummary.uncertain":                 "words of the broker",
	"OpenPorts.forwarded_to":                    "an address and a port",
	"GetJailResponse.log_files":                 "where fail2ban looks; the permission is about this",
	"GetJailResponse.journal_matches":           "as GetJailResponse.log_files",
	"GetJailResponse.ignored_addresses":         "addresses; the permission is about this",
	"Ban.address":                               "an address; the permission is about this",
	"JournalEntry.unit":                         "the name of a unit",
	"JournalEntry.identifier":                   "what the writer calls itself; the permission is about the source",
	"JournalEntry.message":                      "the message, redacted; the permission is about this",
	"JournalEntry.cursor":                       "a place in the journal",
	"JournalEnd.cursor":                         "a place in the journal",
	"SshdSetting.value":                         "as sshd prints it, less keys, commands and variables, which are left out",
	"SshdFinding.setting":                       "as SshdSetting.value",
	"SshdFinding.advice":                        "words of the broker",
	"SshdFinding.reference":                     "words of the broker",
	"SshdConfigResponse.listen_addresses":       "addresses and ports",
	"SshdConfigResponse.allow_users":            "names of accounts; the permission is about this",
	"SshdConfigResponse.deny_users":             "as SshdConfigResponse.allow_users",
	"SshdConfigResponse.allow_groups":           "as SshdConfigResponse.allow_users",
	"SshdConfigResponse.deny_groups":            "as SshdConfigResponse.allow_users",
	"ListeningSocket.address":                   "an address of the host",
	"ListeningSocketsResponse.problems":         "words of the broker",
}

// dangerous are the words of what no message may carry.
var dangerous = regexp.MustCompile(`(^|_)(command|cmd|argv?|args|entrypoint|exec|shell|script|mounts?|binds?|volumes?|devices?|capabilit(y|ies)|cap_add|privileged|path|file|dir|archive|tar|spec|config|host_config|env|environment|dockerfile|user|workdir)(_|$)`)

// harmless are fields with such a word, with the reason.
var harmless = map[string]string{
	"InspectContainerRequest.include_mount_sources": "a boolean that asks to see",
	"InspectContainerResponse.mounts":               "a response, of type, destination and mode",
	"InspectContainerResponse.environment_keys":     "a response, of names",
	"DiskUsageResponse.volumes":                     "a response, of sizes",
	"ListVolumesResponse.volumes":                   "a response, of names and drivers",
}

func fields(t *testing.T, visit func(service bool, name string, fd protoreflect.FieldDescriptor)) {
	requests := map[protoreflect.FullName]bool{}
	var walk func(md protoreflect.MessageDescriptor)
	walk = func(md protoreflect.MessageDescriptor) {
		if requests[md.FullName()] || md.ParentFile().Package() != "hermes.broker.v1" {
			return
		}
		requests[md.FullName()] = true
		for i := range md.Fields().Len() {
			if m := md.Fields().Get(i).Message(); m != nil {
				walk(m)
			}
		}
	}
	messages := 0
	var all []protoreflect.MessageDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("hermes.broker.v1", func(fd protoreflect.FileDescriptor) bool {
		for i := range fd.Services().Len() {
			for j := range fd.Services().Get(i).Methods().Len() {
				walk(fd.Services().Get(i).Methods().Get(j).Input())
			}
		}
		if fd.Path() != "hermes/broker/v1/access.proto" { // The vocabulary of options is in no call.
			for i := range fd.Messages().Len() {
				all = append(all, fd.Messages().Get(i))
			}
		}
		return true
	})
	for _, md := range all {
		messages++
		for j := range md.Fields().Len() {
			visit(requests[md.FullName()], string(md.Name())+"."+string(md.Fields().Get(j).Name()), md.Fields().Get(j))
		}
	}
	if messages < 30 {
		t.Fatalf("only %d messages were looked at", messages)
	}
}

func isText(fd protoreflect.FieldDescriptor) bool {
	if fd.IsMap() {
		fd = fd.MapValue()
	}
	return fd.Kind() == protoreflect.StringKind || fd.Kind() == protoreflect.BytesKind
}

func TestNoRequestCanSayAnythingDangerous(t *testing.T) {
	var seen []string
	fields(t, func(request bool, name string, fd protoreflect.FieldDescriptor) {
		if dangerous.MatchString(string(fd.Name())) && harmless[name] == "" {
			t.Errorf("%s is called like something that no message may carry; if it is harmless, say why in this test", name)
		}
		if fd.Kind() == protoreflect.GroupKind || (fd.Message() != nil && slices.Contains([]protoreflect.FullName{
			"google.protobuf.Any", "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.FieldMask",
		}, fd.Message().FullName())) {
			t.Errorf("%s has a type that can hold anything", name)
		}
		if request && isText(fd) {
			seen = append(seen, name)
			if freeText[name] == "" {
				t.Errorf("%s holds free text; add it to freeText with the reason why it can carry nothing dangerous", name)
			}
		}
		if request && fd.IsMap() {
			t.Errorf("%s is a map; requests have none", name)
		}
	})
	for name := range freeText {
		if !slices.Contains(seen, name) {
			t.Errorf("%s is in freeText and not in the schema", name)
		}
	}
}

// plain are the names of response fields that hold identifiers the broker or
// the engine made, references, addresses and the like.
var plain = regexp.MustCompile(`^(name|id|image_id|image_digests|host_ip|protocol|type|network|ipv[46]_address|mac_address|next_page_token|spiffe_id|certificate_serial|permissions|resources|budget|rule|policy_hash|peer_address|caller|reason|frozen_by|explanation|version|revision|go_version|engine_api_version|container|request_id|permission|resource|name_pattern|page_token|` +
	`server_version|api_version|os_type|architecture|kernel_version|storage_driver|cgroup_driver|cgroup_version|min_api_version|git_commit|` +
	`plan|names|driver|scope|subnets|method|target|error_reason|references|digests?|in_use_by|image|remaining_references|` +
	`table|chain|target|key|permit_root_login|permit_tunnel|allow_tcp_forwarding|authentication_methods|log_level|ciphers|macs|\w+_algorithms)$`)

func TestResponsesShowOnlyWhatSomebodyThoughtAbout(t *testing.T) {
	fields(t, func(request bool, name string, fd protoreflect.FieldDescriptor) {
		if !request && isText(fd) && !plain.MatchString(string(fd.Name())) && shown[name] == "" {
			t.Errorf("%s shows text; add it to shown with the reason why it holds no secret", name)
		}
	})
}
