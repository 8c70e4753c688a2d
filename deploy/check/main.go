// Command check holds the deployment files against the schemas of Kubernetes and Compose,
// and against what they refer to within themselves. It is a module of its own, so that the
// program does not depend on these schemas. It asks no cluster.
//
//	go run . [-nixp2p PROGRAM] FILE...
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

func main() {
	program := flag.String("nixp2p", "", "`PROGRAM` that checks configuration files found in manifests")
	flag.Parse()
	failed := false
	for _, name := range flag.Args() {
		var err error
		switch filepath.Base(name) {
		case "compose.yaml":
			err = checkCompose(name)
		default:
			err = checkKubernetes(name, *program)
		}
		if err != nil {
			failed = true
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			continue
		}
		fmt.Println("ok:", name)
	}
	if failed || flag.NArg() == 0 {
		os.Exit(1)
	}
}

// checkCompose loads a file as compose does: against the schema, with what it interpolates.
func checkCompose(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	project, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  filepath.Dir(abs),
		ConfigFiles: []types.ConfigFile{{Filename: abs, Content: text}},
	})
	if err != nil {
		return err
	}
	for _, s := range project.Services {
		if s.Build == nil {
			continue
		}
		file := filepath.Join(s.Build.Context, s.Build.Dockerfile)
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	return nil
}

var separator = regexp.MustCompile(`(?m)^---$`)

// cluster is what the objects of one file are to each other.
type cluster struct {
	program    string
	schemas    *schemas
	namespaces []string
	configMaps map[string]corev1.ConfigMap
	services   []corev1.Service
	pods       map[string]pod
}

type pod struct {
	namespace string
	labels    map[string]string
	spec      corev1.PodSpec
}

func checkKubernetes(name, program string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	all, err := loadSchemas()
	if err != nil {
		return err
	}
	c := &cluster{program: program, schemas: all, configMaps: map[string]corev1.ConfigMap{}, pods: map[string]pod{}}
	for i, doc := range separator.Split(string(text), -1) {
		if err := c.add([]byte(doc)); err != nil {
			return fmt.Errorf("document %d: %w", i+1, err)
		}
	}
	return c.check()
}

// add decodes one object, in which no field may be unknown or twice.
func (c *cluster) add(doc []byte) error {
	object, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return err
	}
	var kind metav1.TypeMeta
	if err := json.UnmarshalCaseSensitivePreserveInts(object, &kind); err != nil {
		return err
	}
	if err := c.schemas.check(kind, object); err != nil {
		return err
	}
	switch kind.APIVersion + " " + kind.Kind {
	case "v1 Namespace":
		o, err := strict[corev1.Namespace](object)
		c.namespaces = append(c.namespaces, o.Name)
		return err
	case "v1 ConfigMap":
		o, err := strict[corev1.ConfigMap](object)
		c.configMaps[o.Name] = o
		return err
	case "v1 Service":
		o, err := strict[corev1.Service](object)
		c.services = append(c.services, o)
		return err
	case "apps/v1 DaemonSet":
		o, err := strict[appsv1.DaemonSet](object)
		if err == nil && !selects(o.Spec.Selector.MatchLabels, o.Spec.Template.Labels) {
			err = errors.New("the selector is not that of the template")
		}
		c.pods[o.Name] = pod{o.Namespace, o.Spec.Template.Labels, o.Spec.Template.Spec}
		return err
	case "batch/v1 Job":
		o, err := strict[batchv1.Job](object)
		c.pods[o.Name] = pod{o.Namespace, o.Spec.Template.Labels, o.Spec.Template.Spec}
		return err
	}
	return fmt.Errorf("an object of kind %q %q", kind.APIVersion, kind.Kind)
}

// strict decodes as an API server does that is asked to be strict.
func strict[T any](object []byte) (o T, err error) {
	unknown, err := json.UnmarshalStrict(object, &o)
	return o, errors.Join(append(unknown, err)...)
}

func (c *cluster) check() error {
	for _, s := range c.services {
		ok := false
		for _, p := range c.pods {
			ok = ok || p.namespace == s.Namespace && selects(s.Spec.Selector, p.labels) && hasPorts(s, p.spec)
		}
		if !ok {
			return fmt.Errorf("service %s is no pod's", s.Name)
		}
	}
	for name, p := range c.pods {
		if p.namespace != "" && !slices.Contains(c.namespaces, p.namespace) {
			return fmt.Errorf("%s: no namespace %s", name, p.namespace)
		}
		if err := c.checkPod(p.spec); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, m := range c.configMaps {
		if text, ok := m.Data["config.toml"]; ok && c.program != "" {
			if err := checkConfig(c.program, text); err != nil {
				return fmt.Errorf("%s: config.toml: %w", m.Name, err)
			}
		}
	}
	return nil
}

func (c *cluster) checkPod(spec corev1.PodSpec) error {
	volumes := map[string]bool{}
	for _, v := range spec.Volumes {
		if v.ConfigMap != nil {
			if _, ok := c.configMaps[v.ConfigMap.Name]; !ok {
				return fmt.Errorf("no ConfigMap %s", v.ConfigMap.Name)
			}
		}
		volumes[v.Name] = false
	}
	for _, k := range spec.Containers {
		if k.Image == "" {
			return fmt.Errorf("container %s has no image", k.Name)
		}
		for _, m := range k.VolumeMounts {
			if _, ok := volumes[m.Name]; !ok {
				return fmt.Errorf("no volume %s", m.Name)
			}
			volumes[m.Name] = true
		}
		for _, probe := range []*corev1.Probe{k.ReadinessProbe, k.LivenessProbe} {
			if probe != nil && probe.HTTPGet != nil && !hasPort(k.Ports, probe.HTTPGet.Port.StrVal) {
				return fmt.Errorf("a probe of port %s, which there is not", probe.HTTPGet.Port.StrVal)
			}
		}
	}
	for name, used := range volumes {
		if !used {
			return fmt.Errorf("nobody mounts volume %s", name)
		}
	}
	return nil
}

func checkConfig(program, text string) error {
	f, err := os.CreateTemp("", "config*.toml")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	out, err := exec.Command(program, "config", "check", f.Name()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

func hasPorts(s corev1.Service, spec corev1.PodSpec) bool {
	for _, p := range s.Spec.Ports {
		if !slices.ContainsFunc(spec.Containers, func(k corev1.Container) bool { return hasPort(k.Ports, p.TargetPort.StrVal) }) {
			return false
		}
	}
	return true
}

func hasPort(ports []corev1.ContainerPort, name string) bool {
	return slices.ContainsFunc(ports, func(p corev1.ContainerPort) bool { return p.Name == name })
}
