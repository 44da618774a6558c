// Light or dark as chosen here before, set before the page is painted; without a choice the system's.
const chosen = localStorage.getItem("theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
