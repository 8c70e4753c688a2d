# Stands in for the part of nixpkgs' lib that the modules use, so that they can be evaluated
# with nothing but Nix. It is as strict as the original in what matters here (types, unknown
# options, priorities, order) and knows nothing else. With a nixpkgs at hand,
# `NIXPKGS=path nix/eval-test/run.sh` uses the original.
let
  inherit (builtins) all any attrNames concatLists concatMap elem elemAt filter foldl' hasAttr head isAttrs
    isBool isFunction isInt isList isString length listToAttrs mapAttrs sort stringLength substring toJSON;

  kindOf = v: if isAttrs v then v._type or "" else "";
  isOption = v: kindOf v == "option";
  show = builtins.concatStringsSep ".";
  unique = foldl' (acc: x: if elem x acc then acc else acc ++ [ x ]) [ ];

  # A definition is { value; prio; order; }. spread takes the wrappers off a definition of
  # attributes without asking an "if" whether it holds: that may depend on the result. What
  # stands inside keeps the wrapper.
  spread = d:
    let v = d.value; kind = kindOf v; in
    if kind == "if" then
      map (x: x // { value = mapAttrs (_: content: { _type = "if"; inherit (v) condition; inherit content; }) x.value; })
        (spread (d // { value = v.content; }))
    else if kind == "merge" then concatMap (x: spread (d // { value = x; })) v.contents
    else if kind == "override" then spread (d // { value = v.content; inherit (v) prio; })
    else if kind == "order" then spread (d // { value = v.content; inherit (v) order; })
    else [ d ];

  # unwrap takes the wrappers off the definitions of one value, and asks.
  unwrap = d:
    let v = d.value; kind = kindOf v; in
    if kind == "if" then (if v.condition then unwrap (d // { value = v.content; }) else [ ])
    else if kind == "merge" then concatMap (x: unwrap (d // { value = x; })) v.contents
    else if kind == "override" then unwrap (d // { value = v.content; inherit (v) prio; })
    else if kind == "order" then unwrap (d // { value = v.content; inherit (v) order; })
    else [ d ];

  # evalTree evaluates definitions (of attributes) against a tree of options.
  evalTree = loc: options: freeform: defs:
    let
      flat = concatMap spread defs;
      names = unique (concatMap (d: attrNames d.value) flat);
      below = n: map (d: d // { value = d.value.${n}; }) (filter (d: hasAttr n d.value) flat);
      unknown = filter (n: !hasAttr n options) names;
      known = mapAttrs (n: o: if isOption o then evalOption (loc ++ [ n ]) o (below n) else evalTree (loc ++ [ n ]) o null (below n)) options;
      # What an "if" took away is not there.
      there = filter (n: concatMap unwrap (below n) != [ ]) unknown;
      free = listToAttrs (map (n: { name = n; value = evalOption (loc ++ [ n ]) { type = freeform.nestedType or freeform; } (below n); }) there);
    in
    if unknown == [ ] then known
    else if freeform != null then free // known
    else throw "The option `${show (loc ++ [ (head unknown) ])}' does not exist.";

  evalOption = loc: o: defs:
    let
      found = concatMap unwrap defs;
      withDefault = found ++ (if o ? default then [{ value = o.default; prio = 1500; order = 1000; }] else [ ]);
      best = foldl' (p: d: if d.prio < p then d.prio else p) 9999 withDefault;
      chosen = sort (a: b: a.order < b.order) (filter (d: d.prio == best) withDefault);
    in
    if withDefault == [ ] then throw "The option `${show loc}' is used but not defined."
    else mergeAs loc o.type chosen;

  mergeAs = loc: type: defs:
    let bad = filter (d: !(type.check d.value)) defs; in
    if bad != [ ] then throw "A definition for option `${show loc}' is not of type `${type.name}'. Value: ${describe (head bad).value}"
    else type.merge loc defs;

  describe = v: if isAttrs v || isFunction v then "…" else toJSON v;

  equal = loc: defs:
    if all (d: d.value == (head defs).value) defs then (head defs).value
    else throw "The option `${show loc}' has conflicting definition values.";

  mkType = name: check: { inherit name check; merge = equal; };

  types = rec {
    bool = mkType "boolean" isBool;
    str = mkType "string" isString;
    package = mkType "package" (v: isAttrs v && v ? outPath);
    unspecified = { name = "unspecified"; check = _: true; merge = _: defs: (elemAt defs (length defs - 1)).value; };
    raw = unspecified;
    ints = {
      unsigned = mkType "unsigned integer, meaning >=0" (v: isInt v && v >= 0);
      positive = mkType "positive integer, meaning >0" (v: isInt v && v > 0);
    };
    enum = values: mkType "one of ${toJSON values}" (v: elem v values);
    either = a: b: {
      name = "${a.name} or ${b.name}";
      check = v: a.check v || b.check v;
      merge = loc: defs: if all (d: a.check d.value) defs then a.merge loc defs else b.merge loc defs;
    };
    nullOr = t: {
      name = "null or ${t.name}";
      check = v: v == null || t.check v;
      merge = loc: defs:
        if all (d: d.value == null) defs then null
        else if any (d: d.value == null) defs then throw "The option `${show loc}' is null in one place and not in another."
        else t.merge loc defs;
    };
    listOf = t: {
      name = "list of ${t.name}";
      check = isList;
      merge = loc: defs: concatMap (d: map (v: mergeAs loc t (unwrap (d // { value = v; }))) d.value) defs;
    };
    attrsOf = t: {
      name = "attribute set of ${t.name}";
      check = isAttrs;
      nestedType = t;
      merge = loc: defs: evalTree loc { } t defs;
    };
    submodule = m: {
      name = "submodule";
      check = isAttrs;
      merge = loc: defs: evalTree loc m.options (m.freeformType or null) defs;
    };
    # Whatever a part of the system that is not looked at closely takes: attributes are
    # merged, lists put together.
    anything = {
      name = "anything";
      check = _: true;
      merge = loc: defs:
        if all (d: isAttrs d.value && !(d.value ? outPath)) defs then evalTree loc { } anything defs
        else if all (d: isList d.value) defs then concatMap (d: d.value) defs
        else equal loc defs;
    };
  };

  collect = args: m:
    let
      from = if isFunction m then m else if isAttrs m then _: m else import m;
      body = if isFunction from then from args else from;
      long = body ? options || body ? config || body ? imports;
    in
    concatMap (collect args) (body.imports or [ ]) ++ [{
      options = body.options or { };
      config = if body ? config then body.config else if long then { } else body;
    }];

  mergeOptions = a: b:
    a // mapAttrs (n: v: if hasAttr n a && !isOption v then mergeOptions a.${n} v else v) b;

  hasPrefix = p: s: substring 0 (stringLength p) s == p;
  ordered = order: content: { _type = "order"; inherit order content; };
  override = prio: content: { _type = "override"; inherit prio content; };
in
rec {
  inherit types;

  evalModules = { modules, specialArgs ? { } }:
    let
      all = concatMap (collect (specialArgs // { inherit config lib; })) modules;
      lib = specialArgs.lib;
      options = foldl' mergeOptions { } (map (m: m.options) all);
      config = evalTree [ ] options null (map (m: { value = m.config; prio = 100; order = 1000; }) all);
    in
    { inherit config options; };

  mkOption = o: o // { _type = "option"; };
  mkEnableOption = what: mkOption { type = types.bool; default = false; description = "Whether to enable ${what}."; };
  mkPackageOption = pkgs: name: _: mkOption { type = types.package; default = pkgs.${name}; description = "The ${name} package to use."; };
  literalExpression = text: { _type = "literalExpression"; inherit text; };
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };
  mkDefault = override 1000;
  mkForce = override 50;
  mkBefore = ordered 500;
  mkAfter = ordered 1500;

  inherit hasPrefix unique filter;
  inherit (builtins) concatStringsSep;
  splitString = by: s: filter isString (builtins.split by s);
  toList = x: if isList x then x else [ x ];
  take = n: xs: if n == 0 || xs == [ ] then [ ] else [ (head xs) ] ++ take (n - 1) (builtins.tail xs);
  optional = c: x: if c then [ x ] else [ ];
  optionals = c: xs: if c then xs else [ ];
  optionalAttrs = c: as: if c then as else { };
  optionalString = c: s: if c then s else "";
  filterAttrs = keep: as: listToAttrs (map (n: { name = n; value = as.${n}; }) (filter (n: keep n as.${n}) (attrNames as)));
  genAttrs = names: f: listToAttrs (map (n: { name = n; value = f n; }) names);
  toInt = s: builtins.fromJSON s;
  versionAtLeast = a: b: builtins.compareVersions a b >= 0;
  getVersion = p: p.version;
  fileContents = f: builtins.head (builtins.split "\n$" (builtins.readFile f));
  cleanSource = p: p;
  platforms = { linux = [ "x86_64-linux" ]; darwin = [ "aarch64-darwin" ]; };
  licenses.mit = "MIT";
}
