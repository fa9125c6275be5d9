# Replaces the parts of nixpkgs' lib that module.nix uses, by their documentation: options with types
# and defaults, mkIf, mkMerge, and the merging of definitions.
rec {
  # Options

  mkOption = option: option // { _type = "option"; };

  types = rec {
    plain = name: check: { inherit name check; parse = _path: value: value; };
    bool = plain "boolean" builtins.isBool;
    int = plain "integer" builtins.isInt;
    float = plain "number" (v: builtins.isFloat v || builtins.isInt v);
    str = plain "string" builtins.isString;
    path = plain "absolute path" (v: builtins.isPath v || (builtins.isString v && builtins.match "/.*" v != null));
    package = plain "package" (v: builtins.isAttrs v || builtins.isString v);
    attrs = plain "attributes" builtins.isAttrs;
    enum = values: plain "one of ${builtins.concatStringsSep ", " values}" (v: builtins.elem v values);
    strMatching = pattern: plain "string matching ${pattern}" (v: builtins.isString v && builtins.match pattern v != null);
    either = one: other: {
      name = "${one.name} or ${other.name}";
      check = v: one.check v || other.check v;
      parse = path: v: if one.check v then one.parse path v else other.parse path v;
    };
    nullOr = type: {
      name = "null or ${type.name}";
      check = v: v == null || type.check v;
      parse = path: v: if v == null then null else type.parse path v;
    };
    listOf = type: {
      name = "list of ${type.name}";
      check = builtins.isList;
      parse = path: map (typed path type);
    };
    attrsOf = type: {
      name = "attributes of ${type.name}";
      check = builtins.isAttrs;
      parse = path: builtins.mapAttrs (name: typed "${path}.${name}" type);
    };
    submodule = module: {
      name = "submodule";
      check = builtins.isAttrs;
      parse = path: evalOptions path module.options;
    };
  };

  typed = path: type: value:
    if type.check value then type.parse path value
    else throw "${path} is not of type ${type.name}";

  # The values of a tree of options, from the definitions of the user.
  evalOptions = path: options: definitions:
    let
      unknown = builtins.filter (name: !(options ? ${name})) (builtins.attrNames definitions);
      value = name: option:
        let optionPath = "${path}.${name}"; in
        if option._type or "" != "option" then evalOptions optionPath option (definitions.${name} or { })
        else if definitions ? ${name} then typed optionPath option.type definitions.${name}
        else if option ? default then typed optionPath option.type option.default
        else throw "${optionPath} is not set and has no default";
    in
    if unknown != [ ] then throw "unknown option ${path}.${builtins.head unknown}"
    else builtins.mapAttrs value options;

  # Definitions

  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };

  # The merged value of all definitions whose conditions hold: lists are concatenated, attributes
  # merged; any other value may be defined once.
  resolve = definitions: merged (builtins.concatMap flat definitions);

  flat = definition:
    let kind = if builtins.isAttrs definition then definition._type or "" else ""; in
    if kind == "if" then (if definition.condition then flat definition.content else [ ])
    else if kind == "merge" then builtins.concatMap flat definition.contents
    else [ definition ];

  merged = values:
    if builtins.all builtins.isList values then builtins.concatLists values
    else if builtins.all (v: builtins.isAttrs v && !(v ? generated)) values then
      filterAttrs (_name: v: v != { _type = "nothing"; })
        (builtins.mapAttrs
          (_name: parts: let all = builtins.concatMap flat parts; in if all == [ ] then { _type = "nothing"; } else merged all)
          (builtins.zipAttrsWith (_name: parts: parts) values))
    else if builtins.length values == 1 then builtins.head values
    else throw "defined more than once: ${builtins.toJSON values}";

  # Helpers

  optional = condition: value: if condition then [ value ] else [ ];
  escapeShellArg = value: "'" + builtins.replaceStrings [ "'" ] [ "'\\''" ] (toString value) + "'";
  escapeShellArgs = values: builtins.concatStringsSep " " (map escapeShellArg values);
  optionalAttrs = condition: value: if condition then value else { };
  nameValuePair = name: value: { inherit name value; };
  mapAttrsToList = f: set: map (name: f name set.${name}) (builtins.attrNames set);
  mapAttrs' = f: set: builtins.listToAttrs (mapAttrsToList f set);
  filterAttrs = keep: set:
    builtins.listToAttrs (builtins.filter (each: keep each.name each.value) (mapAttrsToList nameValuePair set));
  intersectLists = one: builtins.filter (item: builtins.elem item one);
  unique = builtins.foldl' (seen: item: if builtins.elem item seen then seen else seen ++ [ item ]) [ ];
  toInt = text: builtins.fromJSON text;
  recursiveUpdate = old: new:
    old // builtins.mapAttrs
      (name: value:
        if builtins.isAttrs value && builtins.isAttrs (old.${name} or null)
        then recursiveUpdate old.${name} value else value)
      new;
}
