// Builds the page into the folder that its argument names: one script, one style sheet.
import { copyFile, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const require = createRequire(import.meta.url);
const target = process.argv[2] ?? "dist";

// Parts of PatternFly's style sheets that the page has no use for: fonts, which style.css takes from
// Cockpit, the font of icons, and themes that Cockpit does not offer.
const UNUSED = [
    /@font-face\s*\{[^}]*\}/g,
    /\.pf-v6-pficon-[^{}]*\{[^}]*\}/g,
    /:root:where\([^)]*-(felt|glass|high-contrast)[^)]*\)\s*\{[^}]*\}/g,
];
const onlyUsed = {
    name: "only-used",
    setup(esbuild) {
        esbuild.onLoad({ filter: /@patternfly.*\.css$/ }, async ({ path }) => {
            const text = await readFile(path, "utf8");
            return { contents: UNUSED.reduce((rest, part) => rest.replace(part, ""), text), loader: "css" };
        });
    },
};

// The modules of the imported parts of PatternFly instead of all modules: esbuild would take the style
// sheets of all. PatternFly lists the module of each name.
const eachModule = {
    name: "each-module",
    setup(esbuild) {
        esbuild.onLoad({ filter: /(src\/\w+\.tsx|@patternfly\/react-table\/.*\.js)$/ }, async ({ path }) => {
            const text = await readFile(path, "utf8");
            const contents = text.replace(
                /import \{([^}]*)\} from ["'](@patternfly\/react-(?:core|table))["'];/g,
                (_all, names, library) => {
                    const modules = require(`${library}/dist/dynamic-modules.json`);
                    return names
                        .split(",")
                        .map((name) => name.trim())
                        .filter((name) => name && !name.startsWith("type "))
                        .map((name) => `import { ${name} } from "${library}/${modules[name]}";`)
                        .join(" ");
                },
            );
            return { contents, loader: "tsx" };
        });
    },
};

await mkdir(target, { recursive: true });
const { metafile } = await build({
    metafile: true,
    entryPoints: { index: "src/index.tsx" },
    outdir: target,
    bundle: true,
    minify: true,
    target: "es2021",
    define: { "process.env.NODE_ENV": '"production"' },
    external: ["*.woff2"],
    legalComments: "none",
    plugins: [onlyUsed, eachModule],
});
for (const name of ["index.html", "manifest.json"]) await copyFile(name, `${target}/${name}`);
// Cockpit serves index.js from index.js.gz.
for (const name of ["index.css", "index.js"]) {
    const path = `${target}/${name}`;
    await writeFile(`${path}.gz`, gzipSync(await readFile(path), { level: 9 }));
    await rm(path);
}

// The licences of the packages that are in the result.
const inputs = Object.values(metafile.outputs).flatMap(({ inputs }) => Object.keys(inputs));
const names = inputs.map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1]).filter(Boolean);
const texts = [...new Set(names)].sort().map(async (name) => {
    const [file] = (await readdir(`node_modules/${name}`)).filter((entry) => /^licen[cs]e/i.test(entry));
    return `${name}\n\n${await readFile(`node_modules/${name}/${file}`, "utf8")}`;
});
await writeFile(`${target}/LICENSES.txt`, (await Promise.all(texts)).join("\n----\n\n"));
