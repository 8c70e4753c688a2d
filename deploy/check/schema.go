package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// schemas are those that an API server publishes, of the release of k8s.io/api that this
// program is built with. They know what is required; that nothing is unknown, strict
// decoding sees.
type schemas struct{ compiler *jsonschema.Compiler }

func loadSchemas() (*schemas, error) {
	file, err := swagger()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft4)
	if err := c.AddResource("swagger.json", doc); err != nil {
		return nil, err
	}
	return &schemas{c}, nil
}

// swagger returns the file of schemas that kubectl is tested with.
func swagger() (string, error) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", fmt.Errorf("no build info")
	}
	for _, m := range info.Deps {
		if m.Path != "k8s.io/api" {
			continue
		}
		out, err := exec.Command("go", "mod", "download", "-json", "k8s.io/kubectl@"+m.Version).Output()
		if err != nil {
			return "", fmt.Errorf("download of the schemas: %w", err)
		}
		var module struct{ Dir string }
		err = json.Unmarshal(out, &module)
		return filepath.Join(module.Dir, "testdata", "openapi", "swagger.json"), err
	}
	return "", fmt.Errorf("built without k8s.io/api")
}

// check holds an object, as JSON, against the schema of its kind.
func (s *schemas) check(kind metav1.TypeMeta, object []byte) error {
	group := "core"
	version := kind.APIVersion
	if g, v, ok := strings.Cut(kind.APIVersion, "/"); ok {
		group, version = g, v
	}
	schema, err := s.compiler.Compile("swagger.json#/definitions/io.k8s.api." + group + "." + version + "." + kind.Kind)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(object))
	if err != nil {
		return err
	}
	return schema.Validate(v)
}
