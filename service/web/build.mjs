/**
 * Builds what the service serves and npm publishes.
 *
 *     node build.mjs            writes built/
 *     node build.mjs --check    fails with the names of files in built/ that the sources do not give
 *
 * The same sources give the same bytes: every tool's version is pinned in package-lock.json.
 */

import { copyFile, cp, mkdir, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import * as esbuild from "esbuild";

const WEB = dirname(fileURLToPath(import.meta.url));
const BUILT = join(WEB, "built");
const BUNDLE = {
  absWorkingDir: WEB,
  bundle: true,
  charset: "utf8",
  format: "esm",
  logLevel: "warning",
  minify: true,
  target: "es2022",
};

/** Licences of the packages that are in the decoder, and in the page. */
const DECODER_LICENCES = [
  "@jsquash/webp/codec/LICENSE.codec.md",
  "@jsquash/webp/LICENSE",
  "@noble/hashes/LICENSE",
  "pako/LICENSE",
  "pako/LICENSE",
];
const PAGE_LICENCES = ["client-zip/LICENSE.txt"];

/** Runs a program of node_modules in this folder. */
async function run(program, ...words) {
  try {
    await promisify(execFile)(join(WEB, "node_modules", ".bin", program), words, { cwd: WEB });
  } catch (error) {
    throw new Error(`${program} failed:\n${error.stdout}${error.stderr}`);
  }
}

/** The numbers of the decoder, in WebAssembly. */
async function buildKernels(folder) {
  await mkdir(folder, { recursive: true });
  const file = join(folder, "kernels.wasm");
  await run("asc", "--config", "decoder/asconfig.json", "--outFile", file);
}

/** The rest of the package that npm publishes. */
async function buildDecoder(folder) {
  const webp = join(WEB, "node_modules/@jsquash/webp/codec/dec/webp_dec.wasm");
  await writeFile(join(folder, "webp.wasm"), await readFile(webp)); // without its mode
  const inOneFile = { ...BUNDLE, outdir: folder };
  await esbuild.build({ ...inOneFile, entryPoints: { "rankpress-decoder": "decoder/src/index.ts" } });
  await esbuild.build({ ...inOneFile, entryPoints: ["decoder/src/worker.ts"] });
  await esbuild.build({
    ...inOneFile,
    entryPoints: ["decoder/src/element.ts"],
    plugins: [external(/^\.\/index\.(js|ts)$/, "./rankpress-decoder.js")],
  });
  await declareTypes(join(folder, "types"));
  await writeNotices(folder, DECODER_LICENCES);
  for (const name of ["package.json", "README.md"]) {
    await copyFile(join(WEB, "decoder", name), join(folder, name));
  }
}

/** The notices of packages of others, which go wherever their code goes. */
async function writeNotices(folder, licences) {
  const texts = licences.map(async (path) => {
    return `${path}\n\n${await readFile(join(WEB, "node_modules", path), "utf8")}`;
  });
  await writeFile(join(folder, "NOTICES.txt"), (await Promise.all(texts)).join("\n\n"));
}

/** Imports that match stay imports, of another file. */
function external(filter, path) {
  const resolve = () => ({ path, external: true });
  return { name: "external", setup: (build) => build.onResolve({ filter }, resolve) };
}

/** The declarations that the package's two entries need. */
async function declareTypes(folder) {
  const all = await mkdtemp(join(tmpdir(), "types-"));
  const places = ["--rootDir", "decoder/src", "--outDir", all];
  await run("tsc", "--noEmit", "false", "--declaration", "--emitDeclarationOnly", ...places);
  const needed = new Set();
  const waiting = ["index.d.ts", "element.d.ts"];
  await mkdir(folder, { recursive: true });
  for (let name = waiting.pop(); name; name = waiting.pop()) {
    if (needed.has(name)) continue;
    needed.add(name);
    const text = await readFile(join(all, name), "utf8");
    for (const [, file] of text.matchAll(/(?:from|import)\s*\(?"\.\/([\w-]+)\.[jt]s"/g)) {
      waiting.push(`${file}.d.ts`);
    }
    await copyFile(join(all, name), join(folder, name));
  }
  await rm(all, { recursive: true });
}

/** The page at /; it imports the decoder by its address, so that both keep one copy of it. */
async function buildPage(folder) {
  await esbuild.build({
    ...BUNDLE,
    outdir: folder,
    entryPoints: { page: "page/src/main.ts", measure: "page/src/measure/measure.ts" },
    external: ["./decoder/*"],
  });
  await esbuild.build({ ...BUNDLE, outdir: folder, entryPoints: { page: "page/style.css" } });
  await copyFile(join(WEB, "page/index.html"), join(folder, "index.html"));
  await writeNotices(folder, PAGE_LICENCES);
  await cp(join(WEB, "page/examples"), join(folder, "examples"), { recursive: true });
}

/** Paths of all files in a folder and the folders in it. */
async function filesOf(folder) {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile());
  return files.map((entry) => relative(folder, join(entry.parentPath ?? entry.path, entry.name)));
}

/** Paths of files that are not the same in both folders. */
async function differences(one, other) {
  const paths = [...new Set([...(await filesOf(one)), ...(await filesOf(other))])].sort();
  const read = (folder, path) => readFile(join(folder, path)).catch(() => null);
  const differ = async (path) => {
    const [a, b] = await Promise.all([read(one, path), read(other, path)]);
    return a === null || b === null || !a.equals(b);
  };
  const marks = await Promise.all(paths.map(differ));
  return paths.filter((_, at) => marks[at]);
}

async function build(folder) {
  await buildKernels(join(folder, "decoder"));
  await buildDecoder(join(folder, "decoder"));
  await buildPage(folder);
}

async function check() {
  const fresh = await mkdtemp(join(tmpdir(), "built-"));
  await build(fresh);
  const stale = await differences(fresh, BUILT);
  await rm(fresh, { recursive: true });
  if (stale.length > 0) {
    throw new Error(`npm run build was not run after a change: ${stale.join(", ")}`);
  }
}

async function main() {
  if (process.argv.includes("--check")) return check();
  await rm(BUILT, { recursive: true, force: true });
  await build(BUILT);
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
