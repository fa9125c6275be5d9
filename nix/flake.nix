# nix build 'path:.?dir=nix', nix develop 'path:.?dir=nix', nix flake check 'path:.?dir=nix'
{
  description = "zfsilo: network block storage for ZFS";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    microvm = {
      url = "github:astro/microvm.nix";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs = { self, nixpkgs, microvm }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      eachSystem = make: nixpkgs.lib.genAttrs systems (system: make (import nixpkgs {
        inherit system;
        overlays = [ self.overlays.default ];
      }));
      machine = name: nixpkgs.lib.nixosSystem {
        system = "x86_64-linux";
        specialArgs.scenario = import ./scenario.nix;
        modules = [
          { nixpkgs.overlays = [ self.overlays.default ]; }
          microvm.nixosModules.microvm
          self.nixosModules.default
          ./microvm.nix
          (import ./scenario.nix).machines.${name}
        ];
      };
    in
    {
      overlays.default = final: _previous: { zfsilo = final.callPackage ./package.nix { }; };

      packages = eachSystem (pkgs: { default = pkgs.zfsilo; inherit (pkgs) zfsilo; });

      devShells = eachSystem (pkgs: { default = pkgs.callPackage ./shell.nix { }; });

      nixosModules.default = ./module.nix;

      checks = eachSystem (pkgs: {
        two-machines = pkgs.callPackage ./two-machines.nix { module = self.nixosModules.default; };
      });

      # Machines for development: nix run 'path:.?dir=nix#nixosConfigurations.give.config.microvm.declaredRunner'
      nixosConfigurations = { give = machine "give"; take = machine "take"; };
    };
}
