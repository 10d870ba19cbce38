/** The ways in which files reach the page: chosen, dropped, pasted. */

import { byId } from "./dom.js";

/** Tell about every set of files that the visitor gives. */
export function listenForFiles(onFiles: (files: File[]) => void): void {
  const take = (list: FileList | undefined): void => {
    if (list !== undefined && list.length > 0) onFiles([...list]);
  };
  const input = byId("files", HTMLInputElement);
  for (const id of ["choose", "choose-first"]) {
    byId(id, HTMLButtonElement).addEventListener("click", () => input.click());
  }
  input.addEventListener("change", () => {
    take(input.files ?? undefined);
    input.value = "";
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    take(event.dataTransfer?.files);
  });
}
