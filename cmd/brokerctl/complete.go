package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

// complete offers fixed words for a flag.
func complete(cmd *cobra.Command, flag string, words ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // The flag does not exist: a defect, met by every run.
	}
}

// enum is a generated type of an enum.
type enum interface {
	~int32
	fmt.Stringer
	protoreflect.Enum
}

// enumWords are the values of an enum as enumText gives them, less the zero.
func enumWords[E enum](prefix string) (words []string) {
	all := E(0).Descriptor().Values()
	for i := range all.Len() {
		if v := all.Get(i); v.Number() != 0 {
			words = append(words, enumText(E(v.Number()), prefix))
		}
	}
	return words
}

// enumValue finds the value that a flag's word stands for.
func enumValue[E enum](flag, word, prefix string) (E, error) {
	v := E(0).Descriptor().Values().ByName(protoreflect.Name(prefix + strings.ToUpper(strings.ReplaceAll(word, "-", "_"))))
	if v == nil || v.Number() == 0 {
		return 0, fail(exitUsage, "--help of the command lists the values", "--%s: unknown value %q", flag, word)
	}
	return E(v.Number()), nil
}

// enumFlag gives cmd a flag that takes values of an enum, in words, and returns
// how to read it once the command line is.
func enumFlag[E enum](cmd *cobra.Command, flag, usage, prefix string) (read func() ([]E, error)) {
	var given []string
	words := enumWords[E](prefix)
	cmd.Flags().StringSliceVar(&given, flag, nil, usage+": "+strings.Join(words, ", "))
	complete(cmd, flag, words...)
	return func() (values []E, err error) {
		for _, word := range given {
			v, err := enumValue[E](flag, word, prefix)
			if err != nil {
				return nil, err
			}
			values = append(values, v)
		}
		return values, nil
	}
}

// choiceFlag is enumFlag for one value; without the flag it is the enum's zero.
func choiceFlag[E enum](cmd *cobra.Command, flag, usage, prefix string) (read func() (E, error)) {
	var given string
	words := enumWords[E](prefix)
	cmd.Flags().StringVar(&given, flag, "", usage+": "+strings.Join(words, ", "))
	complete(cmd, flag, words...)
	return func() (E, error) {
		if !cmd.Flags().Changed(flag) {
			return 0, nil
		}
		return enumValue[E](flag, given, prefix)
	}
}

// The grammars of names. A shell evaluates what completion offers, so nothing
// else is offered.
var (
	containerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
	imageName     = regexp.MustCompile(`^[a-z0-9][a-zA-Z0-9_.:/@-]{0,511}$`)
	operationID   = regexp.MustCompile(`^operations/[a-zA-Z0-9_-]{1,64}$`)
	jailName      = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)
)

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeNames offers what find finds and grammar allows, unless the broker does
// not answer soon.
func completeNames(grammar *regexp.Regexp, find func(ctx context.Context, prefix string) ([]string, error)) completion {
	const patience = 2 * time.Second
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && !strings.HasSuffix(cmd.Use, "...") {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), patience)
		defer cancel()
		names, err := find(ctx, prefix)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names = slices.DeleteFunc(names, func(n string) bool {
			return !grammar.MatchString(n) || !strings.HasPrefix(n, prefix) || slices.Contains(args, n)
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeContainer offers the names of live containers.
func (a *app) completeContainer() completion {
	return completeNames(containerName, func(ctx context.Context, prefix string) ([]string, error) {
		if prefix != "" && !containerName.MatchString(prefix) {
			return nil, nil // The broker would take a star for a pattern.
		}
		all, err := a.listContainers(ctx, &brokerv1.ListContainersRequest{PageSize: pageSize, NamePattern: prefix + "*"})
		return namesOf(all, (*brokerv1.Container).GetName), err
	})
}

// completeImage offers the references of images.
func (a *app) completeImage() completion {
	return completeNames(imageName, func(ctx context.Context, prefix string) ([]string, error) {
		if prefix != "" && !imageName.MatchString(prefix) {
			return nil, nil
		}
		all, err := a.listImages(ctx, &brokerv1.ListImagesRequest{PageSize: pageSize, ReferencePattern: prefix + "*"})
		return imageNames(all), err
	})
}

// completeOperation offers the names of operations in these states; of none: in
// all.
func (a *app) completeOperation(states ...brokerv1.OperationState) completion {
	return completeNames(operationID, func(ctx context.Context, _ string) ([]string, error) {
		all, err := a.listOperations(ctx, &brokerv1.ListOperationsRequest{PageSize: pageSize, States: states})
		return namesOf(all, (*brokerv1.Operation).GetName), err
	})
}

// completeJail offers the names of jails.
func (a *app) completeJail() completion {
	return completeNames(jailName, func(ctx context.Context, _ string) ([]string, error) {
		resp, err := a.fail2ban(ctx)
		return namesOf(resp.GetJails(), (*brokerv1.JailCounters).GetName), err
	})
}
